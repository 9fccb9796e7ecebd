"""Processes forked from a server are like those that Python starts: pid, output, environment, signals, exit status."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import PATHS, Command, _server, start_job

from convrec_r1.run import forkserver
from convrec_r1.run.forkserver import ForkServer, fork

pytestmark = [
    pytest.mark.processes("forkserver"),
    pytest.mark.skipif(not forkserver.SUPPORTED, reason="processes are forked on Linux only"),
]


def facts(file: str) -> None:
    """What a process knows of itself."""
    import random

    import numpy as np
    import torch

    drawn = (random.random(), np.random.random(), torch.rand(1).item())
    where = (
        os.getpid(),
        os.getsid(0),
        os.getcwd(),
        os.environ.get("ONLY_HERE"),
        sys.stdin.read(),
        torch.get_num_threads(),
    )
    Path(file).write_text(repr((*where, *drawn)))
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)


def leave(status: int) -> None:
    sys.exit(status)


def fail() -> None:
    raise ValueError("of its own")


def sleep() -> None:
    print("asleep", flush=True)
    time.sleep(60)


def test_a_process_has_what_was_asked_for(tmp_path):
    known = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        command = Command(
            ("test_forkserver:facts", f'["{folder}/facts"]'), folder, {"ONLY_HERE": name, "OMP_NUM_THREADS": "3"}, module="job"
        )  # fmt: skip
        assert command.wait(60) == 0, command.said
        assert (command.stdout, command.stderr) == ("out\n", "err\n")
        pid, session, cwd, variable, stdin, threads, *drawn = eval((folder / "facts").read_text())
        assert pid == session == command.pid
        assert (cwd, variable, stdin, threads) == (str(folder), name, "", 3)
        known.append((pid, *drawn))
    assert all(first != second for first, second in zip(*known, strict=True)), "nothing random is shared"
    assert "ONLY_HERE" not in os.environ


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_arrives(tmp_path, status):
    assert start_job("test_forkserver:leave", status, cwd=tmp_path).wait(60) == status


def test_an_error_is_one(tmp_path):
    command = start_job("test_forkserver:fail", cwd=tmp_path)
    assert command.wait(60) == 1
    assert "ValueError: of its own" in command.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(tmp_path, number):
    command = start_job("test_forkserver:sleep", cwd=tmp_path)
    command.until(lambda: "asleep" in command.stdout, 60)
    assert command.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        command._process.wait(0.05)
    command.send_signal(number)
    # Python turns SIGINT into KeyboardInterrupt, whose trace it prints before it dies of the signal.
    assert command.wait(20) == -number
    assert command.poll() == -number
    command.kill()  # of a process that has ended: nothing happens


def test_a_server_ends_with_its_maker_and_what_it_forked_goes_on(tmp_path):
    """The maker is killed. Then the process it started is waited for by nobody, and is told to end by its pid."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(tmp_path / "pids")],
        env={**os.environ, **PATHS, "TMPDIR": str(tmp_path)},
    )
    until((tmp_path / "pids").exists)
    server, child = map(int, (tmp_path / "pids").read_text().split())
    maker.kill()
    maker.wait()
    until(lambda: not alive(server))
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.glob("convrec_r1-*")), "its socket goes with it"


MAKER = """
import os, sys
from convrec_r1.run.forkserver import ForkServer, fork
server = ForkServer([])
child = fork(server.address, ["test_forkserver:sleep", "[]"], env=dict(os.environ), module="job")
with open(sys.argv[1] + "~", "w") as file:
    file.write(f"{server._process.pid} {child.pid}")
os.replace(sys.argv[1] + "~", sys.argv[1])
child.wait()
"""


def test_a_server_that_cannot_start_is_noticed(tmp_path):
    server = ForkServer(["no_such_module"])
    with pytest.raises(OSError, match=r"ended|refused|reset|Broken"):
        fork(server.address, [], env=dict(os.environ))
    server.close()
    with pytest.raises(OSError, match=r"No such file|refused"):
        fork(server.address, [], env=dict(os.environ))


def test_a_client_that_goes_away_harms_nobody(tmp_path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(_server().address)
    assert start_job("test_forkserver:leave", 0, cwd=tmp_path).wait(60) == 0


def test_a_process_whose_server_is_killed_is_waited_for():
    server = ForkServer([], env={**os.environ, **PATHS})
    child = fork(server.address, ["test_forkserver:sleep", "[]"], env=dict(os.environ), module="job")
    server._process.kill()
    server.close()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.kill()
    assert child.wait(20) == 1


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
