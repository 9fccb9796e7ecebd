"""vLLM servers as child processes on this machine, and the GPUs that they use."""

import contextlib
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

import torch

from convrec_r1.base import guard
from convrec_r1.rollout.config import vllm_for_gpus

# `vllm serve` by its module: the command looks up the distribution "vllm", and the wheels for CPUs have another name.
SERVE = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections."""
TRAINERS_OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR",
                "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING")  # fmt: skip
"""Environment variables about the trainer's processes, which a server must not see."""
TAKES_WEIGHTS = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}
"""Environment of a server that takes weights: it has the routes for them, and downloads nothing."""
ERROR = re.compile(r"^(?:\(.*?\] )?([\w.]+(?:Error|Exception): .+)$", re.MULTILINE)
"""The last line of a traceback in a log."""


class LocalProcess:
    """A vLLM server on a port of the loopback interface, in a process group with everything that it starts.

    It ends with this process at the latest.
    """

    def __init__(
        self,
        flags: list[str],
        log: Path,
        scratch: Path,
        gpus: list[str] | None = None,
        settings: Mapping[str, str] = TAKES_WEIGHTS,
    ) -> None:
        """Start it.

        Args:
            flags: of `vllm serve`.
            log: file to which the output is appended.
            scratch: folder that is removed if this process is killed.
            gpus: that it sees, by their names in CUDA_VISIBLE_DEVICES. None: those that this process sees.
            settings: environment variables, in addition to this process's.
        """
        port = free_port()
        self.address, self.log = f"http://127.0.0.1:{port}", log
        env = {name: value for name, value in os.environ.items() if name not in TRAINERS_OWN}
        if gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        command = [*SERVE, *flags, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(os.getpid()), str(scratch), *command],
                env={**env, "PYTHONUNBUFFERED": "1", **settings},
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


def computes_on_cpu() -> bool:
    """Whether servers that are started here compute on the CPU. Does not import vLLM, which takes ten seconds."""
    return not (vllm_for_gpus() and torch.cuda.is_available())


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, by their names in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named else list(map(str, range(torch.cuda.device_count())))


def assign_gpus(visible: list[str], trainers: int, servers: int, each: int) -> list[list[str]]:
    """Assign `each` GPUs to every server: those that the trainers (one GPU each) leave free; shared GPUs if too few are."""
    free = visible[trainers:]
    pool = free if len(free) >= each else visible
    return [[pool[(k * each + i) % len(pool)] for i in range(each)] for k in range(servers)]
