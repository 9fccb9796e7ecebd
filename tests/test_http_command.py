"""task=serve as people start it: the examples of docs/serve.md, and how it ends."""

import shlex
import signal
import subprocess

import httpx
import pytest
from doc_examples import blocks
from serving import LONG, in_thread, write_policy
from support import ROOT, assert_user_error, start_command

from convrec_r1.data.adapters.jsonl import read
from convrec_r1.serve.http.server import listen

pytestmark = pytest.mark.processes("serve")
PAGE = ROOT / "docs" / "serve.md"
PRELOAD = ("convrec_r1.tasks.serve", "convrec_r1.serve.http.app", "uvicorn.lifespan.off", "prometheus_client")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    write_policy(home / "RUN")
    return home


def free_port() -> int:
    with listen("127.0.0.1", 0) as found:
        return found.getsockname()[1]


def start(home, port: int, *more: str, **env: str):
    """The command, and a function that waits until it answers."""
    command = start_command(
        *("task=serve", "checkpoint=RUN", f"port={port}", "rollout=hf", "trainer=cpu", *more),
        cwd=home,
        preload=PRELOAD,
        **env,
    )

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx.ConnectError:
            return False

    command.until(ready)
    return command


@pytest.fixture(scope="module")
def served(home):
    """A server with two policies and thumbs, and its port."""
    port = free_port()
    command = start(home, port, "serve.compare=RUN", "serve.feedback=thumbs.jsonl", "serve.log_requests=true")
    yield command, port
    command.end()


@pytest.mark.parametrize("number", range(7))
def test_the_examples_with_curl(served, home, number):
    _, port = served
    commands = [line for block in blocks(PAGE, "bash") for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 7
    command = shlex.split(commands[number].replace(":8000", f":{port}"))
    done = subprocess.run(
        [*command, "--silent", "--show-error", "--fail-with-body"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "/v1/recommendations" in commands[number]:
        assert done.stdout.count('"title"') == 3
    if "feedback" in commands[number]:
        assert done.stdout.startswith("HTTP/1.1 204")
        assert [str(item) for one in read(home / "thumbs.jsonl") for item in one.ground_truth] == ["Aliens (1986)"]


def test_the_example_with_openais_client(served, capsys):
    _, port = served
    (example,) = blocks(PAGE, "python")
    exec(compile(example.replace(":8000", f":{port}"), "docs/serve.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 10  # two lists of five, of which one line is shared


def test_two_policies_and_what_the_log_says(served):
    command, port = served
    models = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["RUN", "RUN-2"]
    said = "a secret wish \x1b[31m"
    asked = {"messages": said, "model": "RUN-2", "n": 1}
    assert httpx.post(f"http://127.0.0.1:{port}/v1/recommendations", json=asked, timeout=60).json()["model"] == "RUN-2"
    assert r"from 127.0.0.1: a secret wish \x1b[31m" in command.stdout
    assert f"Ready: http://127.0.0.1:{port} (models: RUN, RUN-2)" in command.stdout


def test_a_port_in_use_is_one_message(served, home):
    _, port = served
    second = start_command(*("task=serve", "checkpoint=RUN", f"port={port}", "rollout=hf"), cwd=home, preload=PRELOAD)
    second.wait()
    assert_user_error(second.done, f"port={port}: another program listens on 127.0.0.1:{port}.")
    assert second.stderr.strip().count("\n") == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_when_it_has_answered(home, number, status):
    port = free_port()
    command = start(home, port, CONVREC_R1_API_KEY="correct horse")
    url, key = f"http://127.0.0.1:{port}/v1/recommendations", {"Authorization": "Bearer correct horse"}
    assert httpx.post(url, json=LONG).status_code == 401
    answers = [in_thread(lambda: httpx.post(url, json=LONG, headers=key, timeout=60)) for _ in range(2)]
    command.until(lambda: "convrec_r1_waiting 0.0" in (said := metrics(port, key)) and "running 0.0" not in said)
    command.send_signal(number)
    assert [len(answer().json()["items"]) for answer in answers] == [60, 60]
    assert command.wait(60) == status
    assert "The server has ended: 2 lists answered." in command.stderr
    assert "Traceback" not in command.said
    assert "wish" not in command.said
    assert not (home / "outputs" / "main").exists()


def metrics(port: int, key: dict[str, str]) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", headers=key).text


def test_a_checkpoint_that_is_none_and_a_missing_key(home):
    command = start_command("task=serve", "checkpoint=nowhere", "port=0", "rollout=hf", cwd=home, preload=PRELOAD)
    command.wait()
    assert_user_error(command.done, "nowhere: no such folder")
    command = start_command("task=serve", "port=0", cwd=home, preload=PRELOAD)
    command.wait()
    assert_user_error(command.done, "task=serve needs checkpoint=RUN")
