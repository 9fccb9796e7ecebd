"""A vLLM server as a child process on this machine."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import httpx

from convrec_r1.base import guard

# `vllm serve` by its module: the command looks up the distribution "vllm", and the wheels for CPUs have another name.
SERVE = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections."""
TRAINERS_OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR",
                "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING")  # fmt: skip
"""Environment variables about the run's processes, which a server must not see."""
PROBE = 5.0
"""Seconds until a server must say whether it is well."""
ERROR = re.compile(r"^(?:\(.*?\] )?([\w.]+(?:Error|Exception): .+)$", re.MULTILINE)
"""The last line of a traceback in a log."""


class LocalProcess:
    """A vLLM server on a port of the loopback interface, in a process group with everything that it starts.

    It ends with this process at the latest.
    """

    def __init__(self, flags: list[str], log: Path, scratch: Path) -> None:
        """Start it.

        Args:
            flags: of `vllm serve`.
            log: file to which the output is appended.
            scratch: folder that is removed if this process is killed.
        """
        port = free_port()
        self.address, self.log = f"http://127.0.0.1:{port}", log
        env = {name: value for name, value in os.environ.items() if name not in TRAINERS_OWN}
        command = [*SERVE, *flags, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(os.getpid()), str(scratch), *command],
                env={**env, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._guard)  # runs at exit, too

    @property
    def group(self) -> int:
        return self._guard.pid

    def alive(self) -> bool:
        return self._guard.poll() is None

    def last_words(self) -> str:
        """Return the first errors in the log (the first one causes the others), or the end of the log if it has none."""
        said = self.log.read_text(errors="replace")
        lines = list(dict.fromkeys(ERROR.findall(said)))[:4] or said.strip().splitlines()[-12:]
        return "\n".join(f"  {line[:400]}" for line in lines)

    def stop(self) -> None:
        """End it and everything that it started: SIGTERM, then SIGKILL."""
        self._end()


def _end(leader: subprocess.Popen) -> None:
    _signal_group(leader, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(guard.GRACE + 5)
    _signal_group(leader, signal.SIGKILL)  # the rest of the group, if its leader was killed first
    leader.wait()


def _signal_group(leader: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, number)


def free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free on this machine")


def wait_until_up(process: LocalProcess, seconds: float) -> None:
    """Wait until the server reports that it is well.

    Raises:
        TimeoutError: it is not up after so many seconds.
        ChildProcessError: its process ended.
    """
    end = time.monotonic() + seconds
    with httpx.Client(trust_env=False) as client:  # no proxy for this machine's own servers
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{process.address}/health", timeout=PROBE).is_success:
                    return
            if not process.alive():
                raise ChildProcessError("its process ended")
            if time.monotonic() >= end:
                raise TimeoutError("it is not up")
            time.sleep(0.3)
