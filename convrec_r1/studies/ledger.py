"""The ledger of a sweep: one file per run, so that any process on any machine can record the end of its run."""

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from convrec_r1.base.files import read_json, write_json
from convrec_r1.base.processes import is_first
from convrec_r1.modules.hardware import is_cpu_only
from convrec_r1.run import forkserver

SWEEP = "CONVREC_R1_SWEEP"
"""Environment variable with the folder of the ledger, for the processes that the launcher starts."""
CELL = "CONVREC_R1_CELL"
"""Environment variable with the file of a run, for the process that runs it."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    file: Path
    number: int
    folder: Path
    status: int | None = None
    """Exit status. Negative: killed by this signal. None: running."""
    why: str = ""
    seconds: float = 0.0
    pid: int | None = None
    """Process id on its machine. None: not started."""

    def end(self, status: int, why: str = "") -> None:
        """Record the exit status and the reason. why: "" keeps the reason that the run recorded (`explain`)."""
        record = read_json(self.file)
        ended = {"status": status, "why": why or record["why"], "seconds": round(time.time() - record["began"], 1)}
        write_json(self.file, record | ended)

    def objective(self) -> float | None:
        """Return the objective of the complete run. None if it has none."""
        summary = self.folder / "summary.json"
        return objective(read_json(summary)) if summary.exists() else None


def objective(summary: dict[str, Any]) -> float | None:
    """Return the objective of a search: the best `eval.metric` on the validation split. None without evaluations."""
    return summary.get("best", {}).get("value")


def announce() -> None:
    """Record the process id if this is the first process of a run in a sweep."""
    if is_first():
        _record(pid=os.getpid())


def explain(why: str) -> None:
    """Record the reason of a failure if this process is part of a sweep."""
    _record(why=why)


def _record(**facts: Any) -> None:
    file = Path(os.environ.get(CELL, ""))
    if file.is_file():  # the ledger is removed when the sweep ends
        write_json(file, read_json(file) | facts)


class Ledger:
    """The runs of one sweep, in a folder that all processes of the sweep can access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def current(cls) -> "Ledger":
        """Return the ledger of the sweep of this process. KeyError outside of a sweep."""
        return cls(Path(os.environ[SWEEP]))

    @property
    def sweep_dir(self) -> Path:
        return self.folder.parents[1]

    def file(self, number: int) -> Path:
        """Return the file of run `number`."""
        return self.folder / f"{number:04d}.json"

    def begin(self, number: int, folder: Path) -> Cell:
        """Record the start of run `number` in `folder`."""
        file = self.file(number)
        record = {"number": number, "folder": str(folder.absolute()), "began": time.time()}
        write_json(file, record | {"status": None, "why": "", "seconds": 0.0, "pid": None})
        return Cell(file, number, folder)

    def cells(self) -> list[Cell]:
        """Return the started runs by number."""
        found = []
        for file in sorted(self.folder.glob("[0-9]*.json")):
            record = read_json(file)
            record.pop("began")
            found.append(Cell(file, folder=Path(record.pop("folder")), **record))
        return found

    def close(self) -> None:
        """Remove the ledger."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another sweep of the study may still be running
            self.folder.parent.rmdir()


opened: Ledger | None = None
"""Ledger of the sweep that this process started. None: no sweep."""


class OpenLedger(Callback):
    """Hydra callback that opens a ledger when a sweep begins (conf/config.yaml, hydra.callbacks)."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global opened
        sweeps = Path(config.hydra.sweep.dir).absolute() / ".sweeps"
        opened = Ledger(sweeps / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        opened.folder.mkdir(parents=True)
        os.environ[SWEEP] = str(opened.folder)
        if is_cpu_only(config.trainer.accelerator) and "Submitit" not in config.hydra.launcher._target_:
            forkserver.provide()  # all runs are on this machine
