"""Handle signals that stop a run: Ctrl-C, SIGTERM from a scheduler, SIGUSR1 before a time limit.

During training, the first signal is deferred to the end of the step, when the run saves a checkpoint and exits. Outside of
training it ends the run at once. A second signal always ends the run at once. Either way the last checkpoint can be resumed.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn, Protocol

from convrec_r1.base import processes

_log = logging.getLogger(__name__)

ENDING = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY = 0.5  # seconds
REQUEUE = signal.SIGUSR1
"""The signal that Slurm sends before a job's time limit: `#SBATCH --signal=SIGUSR1@180`."""


class Interrupted(BaseException):
    """The run was stopped by a signal. Not an Exception: code that handles errors must not catch it."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.status = 128 + number  # by the shell's convention


class Stop:
    """The stop requests of this process. Signals arrive in the main thread. Training in another thread, as Ray Train's, gets
    `number` from somebody else, and only tells that it is `deferring`."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that arrived, if any."""
        self._deferred = False
        self._within = 0.0

    def listen(self) -> None:
        """Raise Interrupted on a signal from now on, so that engines are closed and files are complete."""
        if threading.current_thread() is threading.main_thread():
            self.number, self._deferred = None, False
            self._install()

    def wait_for_step(self, within: float) -> None:
        """Only record signals from now on: training asks for `number` after each step.

        within: seconds after a signal until Interrupted is raised all the same.
        """
        self._deferred, self._within = True, within
        if threading.current_thread() is threading.main_thread():
            self._install()  # again: Lightning's handlers would end the run before it saves a checkpoint
            signal.signal(signal.SIGALRM, self._too_late)

    def go_on(self) -> None:
        """End `wait_for_step`: signals raise Interrupted again."""
        self._deferred = False
        if threading.current_thread() is threading.main_thread():
            signal.alarm(0)

    @property
    def deferring(self) -> bool:
        """Whether training is to end with its step, and not at once."""
        return self._deferred

    def _install(self) -> None:
        for number in (*ENDING, REQUEUE):
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.number is not None:
            _exit_at_once(number)
        self.number = number
        if not self._deferred:
            raise Interrupted(number, f"{name}: stopped. The same command resumes from the last checkpoint.")
        text = "%s: saving after this step, within %.0f s (trainer.exit_within). A second signal exits at once."
        _log.warning(text, name, self._within)
        signal.alarm(max(1, round(self._within)))

    def _too_late(self, *_: object) -> None:
        assert self.number is not None
        raise Interrupted(
            self.number,
            f"The step did not end within {self._within:.0f} s (trainer.exit_within) and was not saved. The same command "
            "resumes from the last checkpoint.",
        )


stop = Stop()
"""The one instance of this process."""


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Deliver a signal that arrives during the block after it: a library that starts or is imported leaves a mess when it is
    interrupted. A second signal ends the process at once. Handlers that the block installs are replaced by those before it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        if heard:
            _exit_at_once(number)
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in (*ENDING, REQUEUE)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard:
            signal.raise_signal(number)


def _exit_at_once(number: int) -> NoReturn:
    name = signal.Signals(number).name
    os.write(2, f"\n{name} again: exiting at once. The last checkpoint can be resumed.\n".encode())
    os._exit(128 + number)


OWNED = "CONVREC_R1_OWNED"
"""Environment variable of a run whose stdin is a pipe that its owner holds open. The run ends with its owner."""


def end_with_owner() -> None:
    """Send this process SIGTERM when its owner is gone, if it has one (`OWNED`)."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.get(OWNED):
        threading.Thread(target=wait, name="owner", daemon=True).start()


class Process(Protocol):
    """A process that `run_to_its_end` can wait for: `subprocess.Popen` or `run.forkserver.Forked`."""

    def send_signal(self, number: int, /) -> None: ...

    def wait(self, timeout: float | None = None, /) -> int: ...


def run_to_its_end(process: Process) -> int:
    """Wait for a run in another process, forwarding signals to it. Return its exit status.

    The process must have its own session. Otherwise the terminal's Ctrl-C would reach it twice, and a run exits at once on a
    second signal.

    Raises:
        KeyboardInterrupt: the process has ended after a signal.
    """
    heard = []

    def forward(number: int, _: FrameType | None) -> None:
        heard.append(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (*ENDING, REQUEUE)}
    status = None
    try:
        while status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(_LOOK_EVERY)  # Ray's interrupts do not wake up a wait without end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt
    return status


def requeue() -> None:
    """Requeue this Slurm job. Only the first process of a run does so."""
    if not processes.is_first():
        return
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        _log.warning("%s outside of a Slurm job: there is no job to requeue", REQUEUE.name)
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        _log.warning("Slurm did not requeue job %s: %s", job, done.stderr.strip())
    else:
        _log.info("Slurm requeued job %s", job)
