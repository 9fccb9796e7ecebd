"""vLLM servers as processes of this machine."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

from convrec_r1.rollout.vllm import guard

# `vllm serve` by another name: the command looks up the distribution "vllm", which the wheels for CPUs are not.
SERVE = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
PORTS = range(20_000, 32_000)
"""Below those that systems hand out to connections."""
ERROR = re.compile(r"^(?:\(.*?\] )?([\w.]+(?:Error|Exception): .+)$", re.MULTILINE)
"""A line of a log that ends a stack trace."""
FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
           "VLLM_ENABLE_V1_MULTIPROCESSING")  # fmt: skip
"""What the environment says of the trainer's processes, not of the server's."""

TAKES_WEIGHTS = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}
"""Variables by which a server has the routes that bring it weights; it needs none from anywhere else."""


def server_flags(backend: str) -> list[str]:
    """What makes a server take weights and give tokens, beside how its engine is set up."""
    return ["--enable-scale-out", "--weight-transfer-config", json.dumps({"backend": backend})]


class LocalProcess:
    """A server on a port of the loopback interface, with all that it starts itself. Ends when this process ends."""

    def __init__(
        self,
        flags: list[str],
        log: Path,
        scratch: Path,
        gpus: list[str] | None = None,
        settings: Mapping[str, str] = TAKES_WEIGHTS,
    ) -> None:
        """log: takes its output, behind what it holds.  scratch: removed if this process is killed.

        gpus: that it sees, by the names of CUDA_VISIBLE_DEVICES; None: those that this process sees.
        settings: variables of its environment, beside those of this process.
        """
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.log = log
        command = [*SERVE, *flags, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(os.getpid()), str(scratch), *command],
                env=_environment(gpus, settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._guard)  # at exit, at the latest

    @property
    def group(self) -> int:
        """The id of its process group."""
        return self._guard.pid

    def alive(self) -> bool:
        return self._guard.poll() is None

    def last_words(self) -> str:
        """The errors in its log, the first of which is the cause of the others; if there are none, its end."""
        said = self.log.read_text(errors="replace")
        lines = list(dict.fromkeys(ERROR.findall(said)))[:4] or said.strip().splitlines()[-12:]
        return "\n".join(f"  {line[:400]}" for line in lines)

    def stop(self) -> None:
        """End it and everything it started: politely, then not."""
        self._end()


def _environment(gpus: list[str] | None, settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    seen = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return inherited | seen | {"PYTHONUNBUFFERED": "1"} | dict(settings)


def free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free on this machine")


def _end(leader: subprocess.Popen) -> None:
    _signal_group(leader, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(guard.GRACE + 5)
    _signal_group(leader, signal.SIGKILL)  # what is left of the group, if its leader was killed before it could
    leader.wait()


def _signal_group(leader: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
