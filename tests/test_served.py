"""The process in which a teacher's model is served: it says why it does not start, and nothing of it stays behind."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support import start_job

from convrec_r1.distill.teachers import served
from convrec_r1.distill.teachers.served import LocalProcess, wait_until_up

pytestmark = pytest.mark.long


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts a program in the place of a server. Its arguments are `--host`, the address, `--port`, and the port."""
    processes = []

    def make(program: str) -> LocalProcess:
        monkeypatch.setattr(served, "SERVE", [sys.executable, "-c", program])
        processes.append(LocalProcess([], tmp_path / "server.log", tmp_path / "scratch"))
        return processes[-1]

    yield make
    for process in processes:
        process.stop()


HEALTHY = """
import sys, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_a_server_is_waited_for(start):
    process = start(HEALTHY)
    wait_until_up(process, 30)
    assert process.alive()
    process.stop()
    assert not process.alive()


def test_a_server_that_does_not_start_says_why(start):
    log = "(EngineCore pid=7) ERROR [core.py:1] ValueError: no room\n" + "INFO waits\n" * 20 + "RuntimeError: see above"
    process = start(f"import sys; print({log!r}); sys.exit(1)")
    with pytest.raises(ChildProcessError, match="its process ended"):
        wait_until_up(process, 30)
    said = process.last_words()
    assert said.index("ValueError: no room") < said.index("RuntimeError: see above")


def test_a_server_that_never_comes_up_is_given_up(start):
    with pytest.raises(TimeoutError):
        wait_until_up(start("import time; time.sleep(99)"), 0.5)


# A process group as vLLM's: a server whose own child ignores the polite signal.
SERVER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"])
time.sleep(99)
"""


def ask_a_teacher(folder: str) -> None:
    served.SERVE = [sys.executable, "-c", SERVER]
    (Path(folder) / "scratch").mkdir()
    started = LocalProcess([], Path(folder) / "log", Path(folder) / "scratch")
    (Path(folder) / "group").write_text(str(started.group))
    while not (Path(folder) / "done").exists():
        time.sleep(0.05)


def group_of(number: int) -> list[int]:
    """Processes of a group that are still there."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    rows = [(int(stat.split()[0]), stat.rpartition(")")[2].split()) for stat in stats]
    return [pid for pid, (state, _, group, *_) in rows if int(group) == number and state != "Z"]


def until(condition, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="process groups are read from /proc")
@pytest.mark.parametrize("end", ["run killed", "run done", "server killed", "guard killed"])
def test_nothing_of_a_server_stays_behind(tmp_path, end):
    run = start_job("test_served:ask_a_teacher", str(tmp_path), cwd=tmp_path)
    run.until(lambda: (tmp_path / "group").exists() and (tmp_path / "group").read_text())
    group = int((tmp_path / "group").read_text())
    assert until(lambda: len(group_of(group)) == 3)  # guard, server, child
    if end == "run killed":
        run.end()
    elif end == "server killed":
        os.kill(sorted(group_of(group))[1], signal.SIGKILL)
    else:
        if end == "guard killed":
            os.kill(group, signal.SIGKILL)
        (tmp_path / "done").touch()
    assert until(lambda: not group_of(group))
    assert (tmp_path / "scratch").exists() == (end != "run killed")
    run.end()
