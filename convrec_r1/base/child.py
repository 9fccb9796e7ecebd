"""A command as a child process that ends when this process ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from convrec_r1.base import guard

ERROR = re.compile(r"^(?:\(.*?\] )?([\w.]+(?:Error|Exception): .+)$", re.MULTILINE)
"""The last line of a traceback in a log."""


class ChildProcess:
    """A command in its own process group, with everything that it starts. It ends with this process at the latest."""

    def __init__(self, command: Sequence[str], *, log: Path, scratch: Path, env: Mapping[str, str]) -> None:
        """Start the command.

        Args:
            command: program and arguments.
            log: file to which the output is appended.
            scratch: folder that is removed if this process is killed.
            env: environment of the command.
        """
        self.log = log
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(os.getpid()), str(scratch), *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end, self._guard)  # runs at exit, too

    @property
    def group(self) -> int:
        """Id of the process group."""
        return self._guard.pid

    def alive(self) -> bool:
        """Return whether the command runs."""
        return self._guard.poll() is None

    def last_words(self) -> str:
        """Return the first errors in the log (the first one causes the others), or the end of the log if it has none."""
        said = self.log.read_text(errors="replace")
        lines = list(dict.fromkeys(ERROR.findall(said)))[:4] or said.strip().splitlines()[-12:]
        return "\n".join(f"  {line[:400]}" for line in lines)

    def stop(self) -> None:
        """End the command and everything that it started: SIGTERM, then SIGKILL."""
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
