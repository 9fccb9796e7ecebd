"""hydra/launcher=ray: each run of a sweep is a Ray task, which starts when a node has room for it.

hydra-ray-launcher is not used: it runs a cell again if its worker dies, stops at the first that fails, leaves processes
behind on Ctrl-C, and needs boto3.
"""

import atexit
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from convrec_r1.base.errors import UserError
from convrec_r1.base.options import out_of_bounds
from convrec_r1.base.signals import ENDING, REQUEUE
from convrec_r1.cluster.config import problems
from convrec_r1.cluster.connect import Connection, connect
from convrec_r1.cluster.resources import Bundle
from convrec_r1.studies.cells import CellCommand, execute
from convrec_r1.studies.config import RayLauncherConfig
from convrec_r1.studies.ledger import Cell, Ledger

_FAULT = 1
_LOOK_EVERY = 0.2  # seconds between looks at signals and at the cells' output


class RayLauncher(Launcher):
    """Starts the cells of a sweep on Ray, shows their output and collects their results."""

    def __init__(self, **options: Any) -> None:
        """options: fields of RayLauncherConfig."""
        self.options = RayLauncherConfig(**options)
        self._ray: Connection | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Execute the cells. Raises KeyboardInterrupt after a signal, when all cells have ended."""
        setup_globals()
        wrong = [f"hydra.launcher.{line}" for line in out_of_bounds(self.options)]
        with _own_keys():
            if wrong := wrong or problems(self.options.cluster()):
                raise UserError("\n".join(wrong))
        composed = (self._compose(number, given) for number, given in enumerate(job_overrides, initial_job_idx))
        first = next(composed)  # errors of the config come before Ray starts
        if self._ray is None:
            with _own_keys():
                self._ray = connect(self.options.cluster())
            atexit.register(self._ray.close)  # a search launches its cells in several parts
        cells, returned = Cells(self.options, self._ray), []
        with _signals() as heard:  # after `connect`: Ray has a handler of SIGTERM
            try:
                for cell in chain([first], composed):
                    returned.append(cell)
                    cells.submit(cell.return_value)
                    if heard:
                        break
            finally:  # also if one of them cannot be composed
                cells.wait(heard)
        if heard:
            raise KeyboardInterrupt
        for cell in returned:
            cell.return_value = cells.objectives[cell.return_value.number]
        return returned

    def _compose(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """Compose the config of a cell. `return_value` of the result is its CellCommand."""
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{number}", number
        return run_job(
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
        )


class Cells:
    """Cells that are under way on Ray."""

    def __init__(self, options: RayLauncherConfig, connection: Connection) -> None:
        self.objectives: dict[int, float | None] = {}
        """Objective of each cell that has ended, by its number. None: it failed, or has none."""
        self._options = options
        self._running: dict[Any, CellCommand] = {}
        self._shown: dict[Path, int] = {}
        self._ray = connection

    def submit(self, command: CellCommand) -> None:
        """Start a cell as soon as a node has room for it. Raises UserError if none ever has."""
        import ray

        run: Any = execute
        cpus, gpus = self._options.num_cpus, self._gpus(command)
        keys = "hydra.launcher.num_cpus, hydra.launcher.num_gpus"
        with _own_keys():
            self._ray.require([Bundle(cpus, gpus, f"run of the sweep ({keys})")])
        threads = max(1, int(cpus))
        # Ray would run a cell again whose worker died. The same command does so when the user wants it.
        task = ray.remote(run).options(num_cpus=cpus, num_gpus=gpus, max_retries=0, name=command.folder.name)
        running = task.remote(command, dict(os.environ), Path.cwd(), threads, not gpus)
        self._running[running] = command

    def _gpus(self, command: CellCommand) -> float:
        import ray

        if self._options.num_gpus is not None:
            return self._options.num_gpus
        wanted = command.accelerator == "gpu" or (command.accelerator == "auto" and ray.cluster_resources().get("GPU"))
        return command.devices if wanted else 0

    def wait(self, heard: list[int]) -> None:
        """Return when all cells have ended. Each signal that is added to `heard` meanwhile is passed on to all of them."""
        import ray

        forwarded = 0
        while self._running:
            if len(heard) > forwarded:
                forwarded = len(heard)
                for running in self._running:
                    ray.cancel(running, force=forwarded > 1)
            done, _ = ray.wait(list(self._running), timeout=_LOOK_EVERY)
            for command in self._running.values():
                self._show(command)
            for ended in done:
                command = self._running.pop(ended)
                self.objectives[command.number] = _result(ended, command)

    def _show(self, command: CellCommand) -> None:
        """Copy what a cell has written since the last time to this process's output."""
        for file, stream in zip(command.output, (sys.stdout, sys.stderr), strict=True):
            with contextlib.suppress(FileNotFoundError), file.open("rb") as written:
                written.seek(self._shown.get(file, 0))
                text = written.read()
                self._shown[file] = written.tell()
                stream.write(text.decode(errors="replace"))
                stream.flush()


def _result(ended: Any, command: CellCommand) -> float | None:
    """Return the objective of a cell that has ended, and record in the ledger what it could not record itself."""
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    book = Ledger(command.ledger)
    try:
        status = ray.get(ended)
    except TaskCancelledError:
        return None
    except RayTaskError as error:
        if not isinstance(error.cause, KeyboardInterrupt):
            book.begin(command.number, command.folder).end(_FAULT, str(error.cause))
        return None
    except RayError as error:  # its Ray worker was killed, or its node left
        book.begin(command.number, command.folder).end(_FAULT, f"its Ray worker ended: {str(error).splitlines()[0]}")
        return None
    return Cell(book.file(command.number), command.number, command.folder).objective() if status == 0 else None


@contextlib.contextmanager
def _own_keys() -> Iterator[None]:
    """Name the launcher's keys in errors, instead of the cluster's."""
    try:
        yield
    except UserError as error:
        text = (
            str(error)
            .replace("cluster=ray needs Ray", "hydra/launcher=ray needs Ray")
            .replace(" Without it: cluster=local.", "")
        )
        raise UserError(re.sub(r"\bcluster\.", "hydra.launcher.", text)) from error


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the numbers of signals that arrive during the block, in place of their handlers."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in (*ENDING, REQUEUE)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
