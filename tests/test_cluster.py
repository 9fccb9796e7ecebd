"""Ray: started, joined and refused; training in its processes ends with the weights of a run without it."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray_nodes import STORE
from safetensors.torch import load_file
from support import (
    SMALL_MODEL,
    SMOKE,
    Command,
    assert_done,
    assert_user_error,
    make_config,
    run_command,
    run_group,
    run_job,
    start_command,
    start_job,
    unresolved_config,
)
from test_modules import distance

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl
from convrec_r1.cluster import connect as connecting
from convrec_r1.cluster import process as training
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import connect
from convrec_r1.cluster.desk import Death, Desk, End
from convrec_r1.cluster.process import Given
from convrec_r1.cluster.reaper import users
from convrec_r1.cluster.resources import Bundle, Node, fit_together
from convrec_r1.cluster.train import Group
from convrec_r1.cluster.versions import differences, versions
from convrec_r1.config.asked import require_all
from convrec_r1.config.checks import problems
from convrec_r1.doctor.environment import cluster as look_at_cluster
from convrec_r1.doctor.findings import Level

pytestmark = pytest.mark.processes("ray")


@pytest.fixture(scope="module")
def address(nodes):
    """A Ray of two nodes with a CPU each."""
    return nodes.address


def joined(address: str, **options) -> ClusterConfig:
    return ClusterConfig("ray", address=address, **options)


# -- configs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["cluster.address=auto"], "cluster.address=auto joins a Ray: add cluster=ray."),
        (["cluster=ray", "cluster.address=ray://10.0.0.1:10001"], "give it as HOST:PORT"),
        (["cluster=ray", "cluster.address=10.0.0.1"], "give it as HOST:PORT"),
        (["cluster=ray", "cluster.address=auto", "cluster.cpus=2"], "cluster.cpus with cluster.address=auto"),
        (["cluster=ray", "trainer.nodes=2"], "trainer.nodes=2 with a Ray of this machine alone"),
        (["cluster=ray", "cluster.retries=-1"], "cluster.retries=-1: must be at least 0"),
    ],
)
def test_options_that_cannot_work_are_named(overrides, says):
    assert any(says in line for line in problems(unresolved_config(*overrides)))


def test_ray_and_torchrun_do_not_both_start_processes(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    wrong = problems(unresolved_config("cluster=ray", "trainer=ddp", "trainer.devices=2"))
    assert any("torchrun started 2 processes" in line and "cluster=ray starts them itself" in line for line in wrong)


# -- resources and versions ------------------------------------------------------------------------------------------------


NODES = [Node("a", "10.0.0.1", 4, 0), Node("b", "10.0.0.2", 8, 2)]


@pytest.mark.parametrize(
    ("bundles", "fits"),
    [
        ([Bundle(8, 2)], True),
        ([Bundle(1, 1), Bundle(1, 1), Bundle(4), Bundle(4)], True),
        ([Bundle(1, 0.5)] * 4, True),
        ([Bundle(1, 0.5)] * 5, False),
        ([Bundle(9)], False),
        ([Bundle(6), Bundle(6)], False),  # 12 CPUs, but not on a node each
        ([Bundle(1)] * 4 + [Bundle(8, 2)], True),
        ([], True),
    ],
)
def test_bundles_fit_on_nodes_or_not(bundles, fits):
    assert fit_together(bundles, NODES) is fits


def test_what_a_group_asks_for():
    assert Group(4, 1, gpu=True).bundles(2) == [Bundle(8, 4, "4 training processes on a node")]
    assert Group(2, 2, gpu=False).bundles(1) == [Bundle(1, 0, "training process")] * 4


def test_versions_that_differ_are_named():
    mine = versions()
    assert {"Python", "torch", "Ray"} < set(mine)
    assert differences("10.0.0.2", mine, mine) == []
    assert differences("10.0.0.2", mine, {**mine, "torch": "2.0.1"}) == [
        f"10.0.0.2: torch is 2.0.1, here {mine['torch']}."
    ]
    assert differences("10.0.0.2", mine, {"Python": mine["Python"]}) == [
        "10.0.0.2: this package is not installed there."
    ]


def test_nodes_report_and_are_compared(address, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with connect(joined(address)) as connection, connect(joined(address)) as same:
        assert [node.cpus for node in same.nodes()] == [1, 1]
        assert signal.getsignal(signal.SIGTERM) is before
        connection.require([Bundle(1), Bundle(1)])
        with pytest.raises(
            UserError, match=r"asks for at once: 1 x worker \(2 CPUs, 0 GPUs\)\. It has 2 nodes: .*1 CPU"
        ):
            connection.require([Bundle(2, 0, "worker")])
    assert not connecting._initialized()
    monkeypatch.setattr(connecting, "versions", lambda: {**versions(), "torch": "2.0.1"})
    with pytest.raises(UserError, match=r"other versions than this process:\n.*torch is .*, here 2\.0\.1"):
        connect(joined(address))
    assert not connecting._initialized()


def test_nodes_that_join_late_are_waited_for(nodes):
    big = [Bundle(3, 0, "worker")]
    with connect(joined(nodes.address, wait=60.0)) as connection, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(connection.require, big)
        with pytest.raises(FuturesTimeout):
            waiting.result(timeout=0.5)
        late = nodes.add_node(num_cpus=3, object_store_memory=STORE)
        waiting.result()
        nodes.remove_node(late)
    message = r"1 x worker \(3 CPUs.* after 0\.2 s \(cluster\.wait\)"
    with connect(joined(nodes.address, wait=0.2)) as connection, pytest.raises(UserError, match=message):
        connection.require(big)


def test_training_and_workers_must_fit_together(address):
    cfg = make_config("cluster=ray", f"cluster.address={address}", "trainer=ddp", "trainer.accelerator=cpu",
                      "trainer.devices=1", "trainer.nodes=2", "rollout.workers=1")  # fmt: skip
    with connect(cfg.cluster) as connection:
        with pytest.raises(UserError, match=r"2 x training process .*1 x rollout worker"):
            require_all(cfg, connection)
        cfg.rollout.workers = 0
        require_all(cfg, connection)
        cfg.trainer.nodes, cfg.rollout.workers = 1, 2
        require_all(cfg, connection)  # one training process is the command's own


def test_the_doctor_says_what_the_cluster_has(address):
    cfg = unresolved_config("cluster=ray", f"cluster.address={address}", "trainer=ddp", "trainer.accelerator=cpu")
    cfg.trainer.devices, cfg.trainer.nodes = 1, 2
    (found,) = look_at_cluster(cfg)
    assert found.level is Level.OK
    assert "2 nodes" in found.found
    cfg.trainer.devices = 3
    (found,) = look_at_cluster(cfg)
    assert found.level is Level.FAIL
    assert "6 x training process" in found.found


def test_a_node_that_does_not_see_the_commands_files_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "SEEN_WITHIN", 0.0)
    token = tmp_path / "run" / ".ray_train" / "token"
    given = Given(None, str(tmp_path), [], {}, (str(token), "abc"), 1, b"")
    for content in (None, "of another machine"):
        if content:
            token.parent.mkdir(parents=True)
            token.write_text(content)
        with pytest.raises(UserError, match=f"does not see {tmp_path}/run of .*a file system that all of them share"):
            training._share(given)
    token.write_text("abc")
    with pytest.raises(UserError, match=f"does not see {tmp_path}/gone of"):
        training._share(dataclasses.replace(given, folder=str(tmp_path / "gone")))
    training._share(given)


# -- the desk --------------------------------------------------------------------------------------------------------------


def test_an_exception_that_comes_again_ends_the_run():
    desk = Desk(retries=3)
    lost, fault = Death({1: "died"}, lost=True), Death({0: "ValueError: no\ntrace 1"}, lost=False)
    for death in (lost, lost, fault):
        desk.died(death)
    assert desk.news(0).end is None
    desk.died(dataclasses.replace(fault, reasons={0: "ValueError: no\ntrace 2", 1: "RuntimeError: closed"}))
    assert desk.news(0).end == (End.fault, "ValueError: no\ntrace 2")
    assert desk.begin()[0], "processes that restart have nothing to do"


def test_what_is_printed_and_signals_arrive():
    desk = Desk(retries=1)
    desk.say("one\n")
    assert desk.poll(True) == 0
    news = desk.news(15)
    assert (news.text, news.deferring) == ("one\n", True)
    assert desk.news(15).text == ""
    assert desk.poll(False) == 15
    desk.end(End.wrong, "disk full")
    desk.end(End.done, {})
    assert desk.news(0).end == (End.wrong, "disk full")


def test_a_training_process_that_is_cut_off_ends(address, tmp_path):
    """It would hold the lock on the run's folder, for which the group waits that replaces it."""
    command = start_job("cluster_worker:cut_off", address, cwd=tmp_path)
    assert command.wait(50) == 1, command.said
    assert command.stdout == "answered\n"
    assert "The command was not reached for 1 s: this training process ends." in command.stderr


# -- commands --------------------------------------------------------------------------------------------------------------

STEPS = 30
JOB = (*SMOKE, "hydra.run.dir=run", f"rl.steps={STEPS}", "sft.steps=4", "eval.baselines=[]", "eval.every=0",
       "trainer.checkpoint_every=2", "trainer=ddp", "trainer.accelerator=cpu", *SMALL_MODEL)  # fmt: skip


def test_nobody_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run_command(*JOB, "cluster=ray", f"cluster.address=127.0.0.1:{port}", cwd=tmp_path, timeout=60)
    assert_user_error(done, f"cluster.address=127.0.0.1:{port}: nobody answers there", "ray start --head")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_answers_is_not_ray():
    """In seconds: Ray itself would try for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="nobody answers there"):
        connect(joined(f"127.0.0.1:{silent.getsockname()[1]}", start_timeout=0.5))
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(UserError, match="what answers there is not Ray"):
        connect(joined(f"127.0.0.1:{server.server_port}"))
    server.shutdown()


def test_a_token_that_is_missing_is_named():
    """Ray 2.60 wraps the error twice."""
    from ray.exceptions import AuthenticationError

    outer, inner = ConnectionError("Failed to connect to Ray cluster"), RuntimeError("Failed to connect to GCS.")
    outer.__cause__, inner.__cause__ = inner, AuthenticationError("InvalidAuthToken")
    assert "wants a token, or another one. Set RAY_AUTH_MODE=token" in connecting._refusal("10.0.0.1:6379", outer)


def test_without_ray_the_extra_is_named(tmp_path):
    (command,) = run_job("cluster_worker:without_ray", *JOB, "cluster=ray", cwd=tmp_path, world=1)
    assert_user_error(command.done, "pip install 'convrec-r1[ray]'")
    assert not list(tmp_path.rglob("*"))


def test_too_few_cpus_are_named_before_anything_waits(address, tmp_path):
    two_on_a_node = (*JOB, "trainer.devices=2", "cluster=ray", f"cluster.address={address}")
    done = run_command(*two_on_a_node, cwd=tmp_path, timeout=120)
    assert_user_error(done, "1 x 2 training processes on a node (2 CPUs, 0 GPUs)", "It has 2 nodes")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A process that has tried several options of a Ray of its own, and has one now; and what it found."""
    folder = tmp_path_factory.mktemp("own")
    command = start_job("cluster_worker:own_ray", str(folder / "found.json"), cwd=folder)
    command.until((folder / "found.json").exists)
    yield command, read_json(folder / "found.json")
    command.end()


def test_a_start_that_takes_too_long_is_given_up(own):
    _, found = own
    assert re.match(r"Ray did not start on this machine within 0\.3 s \(cluster\.start_timeout\)", found["late"])
    assert not found["left"], "its processes have ended"
    assert found["took"] < 20


def test_the_dashboard_is_served_or_its_extra_is_named(own):
    """On loopback."""
    _, found = own
    if importlib.util.find_spec("aiohttp_cors"):
        assert "; dashboard: http://127.0.0.1:" in found["dashboard"]
    else:
        assert "pip install 'ray[default]', or cluster.dashboard=false." in found["dashboard"]


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")


def test_a_ray_listens_where_it_is_told(own):
    """By default on the loopback interface, all of it."""
    _, found = own
    assert found["loopback"]
    assert all(address in LOOPBACK for address in found["loopback"])
    if found["host"] is not None:
        assert found["node"] == found["host"]
        assert any(address not in LOOPBACK for address in found["elsewhere"])


def test_a_ray_of_a_run_is_joined_with_its_token_only(own, tmp_path):
    """Ray reads the token once in a process. auto: also the address of RAY_ADDRESS."""
    _, found = own
    # As in the process that started it: else Ray takes 127.0.0.1 for another address of this machine.
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environments = {
        "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": found["token"], "RAY_ADDRESS": found["address"]},
        "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ADDRESS": None},
        "none": {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None, "RAY_ADDRESS": None},
    }
    commands = {}
    for kind, env in environments.items():
        arguments = ("cluster_worker:join", json.dumps(["auto" if kind == "right" else found["address"]]))
        commands[kind] = Command(arguments, tmp_path, {**env, **alone}, "job")
    for command in commands.values():
        command.wait(120)
    assert commands["right"].poll() == 0, commands["right"].said
    assert "joined at auto: 1 node: 127.0.0.1 (1 CPU, 0 GPUs)" in commands["right"].stdout
    for kind in ("wrong", "none"):
        assert_user_error(
            commands[kind].done,
            f"cluster.address={found['address']}: the Ray there wants a token, or another one. Set RAY_AUTH",
        )


def test_a_ray_ends_with_the_process_that_started_it(own):
    command, found = own
    os.kill(command.pid, signal.SIGKILL)
    folder, end = Path(found["folder"]), time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not folder.exists()
    assert not users(str(folder))


def weights(folder: Path, step: str = "last") -> dict:
    return load_file(folder / "run" / "checkpoints" / step / "policy" / "model.safetensors")


def trained(folder: Path) -> int:
    return sum(row["split"] == "train" for row in read_jsonl(folder / "run" / "metrics.jsonl"))


def training_processes() -> list[int]:
    """Processes of Ray Train, by their names."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::RayTrainWorker" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Where two processes without Ray have ended, with a checkpoint of each step."""
    folder = tmp_path_factory.mktemp("alone")
    every_step = ("trainer.checkpoint_every=1", "trainer.keep_checkpoints=99")
    assert_done(run_group(*JOB, "trainer.devices=2", *every_step, cwd=folder, world=2))
    return folder


def on_ray(address: str) -> tuple[str, ...]:
    return (*JOB, "trainer.devices=1", "trainer.nodes=2", "cluster=ray", f"cluster.address={address}")


@pytest.mark.slow("two starts of Ray Train, one of which is killed")
def test_training_on_two_nodes_is_that_of_two_processes(address, alone, tmp_path):
    """One of them is killed with -9 on the way, and restarts; SIGTERM saves."""
    command = start_command(*on_ray(address), cwd=tmp_path)
    command.until(lambda: trained(tmp_path) >= 3)
    os.kill(training_processes()[-1], signal.SIGKILL)
    log = tmp_path / "run" / "run.log"
    command.until(lambda: "Restart 1 of the training processes" in log.read_text() and trained(tmp_path) >= 5)
    command.send_signal(signal.SIGTERM)
    assert command.wait(120) == 128 + signal.SIGTERM, command.said
    assert "They restart (1 of 3)." in command.stdout
    assert "SIGTERM: saved at step" in command.stderr
    assert "Traceback" not in command.said
    step = (tmp_path / "run" / "checkpoints" / "last").resolve().name
    assert 5 <= int(step) < STEPS
    assert distance(weights(alone, step), weights(tmp_path)) < 1e-6
    assert not training_processes()
    assert not (tmp_path / "run" / ".ray_train").exists()


@pytest.mark.slow("three starts of Ray Train")
def test_a_command_that_is_killed_resumes(address, alone, tmp_path):
    """After SIGTERM, and after the command itself was killed with -9, when its processes end, too."""
    command = start_command(*on_ray(address), cwd=tmp_path)
    command.until(lambda: trained(tmp_path) >= 3)
    command.send_signal(signal.SIGTERM)
    assert command.wait(120) == 128 + signal.SIGTERM, command.said
    command = start_command(*on_ray(address), cwd=tmp_path)
    command.until(lambda: trained(tmp_path) >= 10)
    command.end()
    end = time.monotonic() + 60
    while training_processes() and time.monotonic() < end:
        time.sleep(0.1)
    assert not training_processes()
    done = run_command(*on_ray(address), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained(tmp_path) == STEPS
    assert distance(weights(alone), weights(tmp_path)) < 1e-6


@pytest.mark.slow("two starts of Ray Train")
def test_shards_on_ray_learn_what_shards_without_it_do(address, tmp_path):
    folders = without, ours = tmp_path / "without", tmp_path / "ours"
    for folder in folders:
        folder.mkdir()
    shards = (
        *JOB,
        "warm_start=null",
        "trainer.strategy=fsdp",
        "rl.steps=6",
        "+callbacks.shards._target_=cluster_worker.Shards",
    )
    assert_done(run_job("cluster_worker:sharded", *shards, "trainer.devices=2", cwd=without, world=2))
    there = ("trainer.devices=1", "trainer.nodes=2", "cluster=ray", f"cluster.address={address}")
    command = start_job("cluster_worker:sharded", *shards, *there, cwd=ours)
    command.until(lambda: trained(ours) >= 3)
    os.kill(training_processes()[-1], signal.SIGKILL)
    assert command.wait(240) == 0, command.said
    assert "They restart (1 of 3)." in command.stdout
    assert distance(weights(without), weights(ours)) < 1e-6
