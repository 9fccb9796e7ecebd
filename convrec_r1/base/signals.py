"""Being told to stop: Ctrl-C, SIGTERM from a scheduler, SIGUSR1 before a time limit. The first asks, the second insists.

While a step trains, a signal waits for its end, when everything is saved; elsewhere it ends the run where it stands, and the
last checkpoint is what there is.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Protocol

from convrec_r1.base import processes

_log = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGINT)
REQUEUE = signal.SIGUSR1
"""What Slurm is asked to send before a job's time is over: `#SBATCH --signal=SIGUSR1@180`."""


class Interrupted(BaseException):
    """The run was told to stop, and has. `status` is what a shell expects after that signal. No error: not caught as one."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.status = 128 + number


class Stop:
    """Whether this process was told to stop. One for the whole process, which hears signals in its main thread."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal."""
        self._waits = False
        self._within = 0.0

    def listen(self) -> None:
        """From now on a signal ends the run in order: engines are closed and files are whole."""
        if threading.current_thread() is threading.main_thread():
            self.number, self._waits = None, False
            for number in (*ENDING, REQUEUE):
                signal.signal(number, self._hear)

    def wait_for_step(self, within: float) -> None:
        """From now on a signal is kept until it is asked for, for `within` seconds at most."""
        if threading.current_thread() is threading.main_thread():
            self._waits, self._within = True, within
            # Lightning's own are replaced: they would end the run before our checkpoint is written.
            for number in (*ENDING, REQUEUE):
                signal.signal(number, self._hear)
            signal.signal(signal.SIGALRM, self._too_late)

    def go_on(self) -> None:
        """No step is under way any more."""
        if threading.current_thread() is threading.main_thread():
            signal.alarm(0)
            self._waits = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.number is not None:
            os.write(2, f"\n{name} again: leaving at once. The last checkpoint is what there is.\n".encode())
            os._exit(128 + number)
        self.number = number
        if not self._waits:
            raise Interrupted(number, f"{name}: stopped. The same command goes on from the last checkpoint.")
        _log.warning(
            "%s: saving when this step ends, within %.0f s (trainer.exit_within). Once more leaves at once.",
            name, self._within,
        )  # fmt: skip
        signal.alarm(max(1, round(self._within)))

    def _too_late(self, *_: object) -> None:
        assert self.number is not None
        raise Interrupted(
            self.number,
            f"The step did not end within {self._within:.0f} s (trainer.exit_within): nothing more was saved. The same "
            "command goes on from the last checkpoint.",
        )


stop = Stop()
"""The process's own."""


class Process(Protocol):
    """What `run_to_its_end` needs of a process: `subprocess.Popen` and `run.forkserver.Forked` have it."""

    def send_signal(self, number: int, /) -> None: ...

    def wait(self) -> int: ...


def run_to_its_end(process: Process) -> int:
    """Wait for a run in a process of its own, and pass on signals, since it may have to save. Returns its exit status.

    The process must have a session of its own: the terminal's Ctrl-C would reach it twice otherwise, and at the second signal
    a run leaves at once. Raises KeyboardInterrupt when the process has ended after a signal.
    """
    heard = []

    def hand_on(number: int, _: FrameType | None) -> None:
        heard.append(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (*ENDING, REQUEUE)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt
    return status


def requeue() -> None:
    """Have Slurm put this job back into its queue. Of a run's processes, the first one asks for it."""
    if not processes.is_first():
        return
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        _log.warning("%s outside of a Slurm job: nothing to put back into a queue", REQUEUE.name)
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        _log.warning("Slurm would not requeue job %s: %s", job, done.stderr.strip())
    else:
        _log.info("Slurm has put job %s back into its queue", job)
