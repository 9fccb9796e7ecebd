"""One run of a sweep as a command that any machine can execute: hydra/launcher=ray sends it to a node with room for it."""

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import OWNED, run_to_its_end
from convrec_r1.run import forkserver
from convrec_r1.studies.ledger import Ledger

OF_THE_NODE = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "HOSTNAME", "CUDA_VISIBLE_DEVICES")
"""Environment variables that describe a machine. A run has its node's, and all others of the command that sweeps."""


@dataclass(frozen=True)
class CellCommand:
    """`python -m convrec_r1 ARGUMENTS`, one run of a sweep."""

    ledger: Path
    """Folder of the sweep's ledger, on storage that all nodes share."""
    number: int
    folder: Path
    """Of the run, absolute."""
    arguments: list[str]
    environment: dict[str, str]
    """Variables that are set besides those of the command that sweeps."""
    accelerator: str
    """`trainer.accelerator` as composed."""
    devices: int
    """`trainer.devices` as composed; 1 if it is open."""

    @property
    def output(self) -> tuple[Path, Path]:
        """Files of its stdout and stderr."""
        return self.ledger / f"{self.number:04d}.out", self.ledger / f"{self.number:04d}.err"


def execute(command: CellCommand, environment: Mapping[str, str], cwd: Path, threads: int, on_cpu: bool) -> int:
    """Execute a cell on this node: begin and end its record in the ledger. Return its exit status.

    Args:
        command: the cell.
        environment: of the process that sweeps, maybe on another machine.
        cwd: working directory.
        threads: OMP_NUM_THREADS, unless the environment says another number.
        on_cpu: the cell uses no GPU, so that it can be forked from a server.
    Raises:
        UserError: the ledger's folder is not on this node.
        KeyboardInterrupt: the cell has ended after a signal.
    """
    # Ray blocks SIGINT in the processes that it starts, and their children inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if not command.ledger.is_dir() or not cwd.is_dir():
        missing = command.ledger if cwd.is_dir() else cwd
        raise UserError(
            f"{missing} does not exist on {os.uname().nodename}: all nodes of a sweep need the folders of `outputs` and of "
            "the command on storage that they share."
        )
    given = {"OMP_NUM_THREADS": str(threads), **environment, **command.environment, OWNED: "1"}
    given |= {name: os.environ[name] for name in OF_THE_NODE if name in os.environ}
    if on_cpu:
        given["CUDA_VISIBLE_DEVICES"] = ""
    cell = Ledger(command.ledger).begin(command.number, command.folder)
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(file.open("ab")).fileno() for file in command.output)
        # The cell ends when this process does, however it does: the pipe is closed then.
        watched, held = os.pipe()
        stack.callback(os.close, held)
        try:
            streams = {"stdin": watched, "stdout": out, "stderr": err}
            process = forkserver.start(command.arguments, given, forked=on_cpu, cwd=cwd, **streams)
        finally:
            os.close(watched)
        status = run_to_its_end(process)
    cell.end(status)
    return status
