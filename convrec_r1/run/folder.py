"""outputs/<study>/<run>/: what a run leaves behind, and what it finds there when it is started again."""

import contextlib
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from convrec_r1 import __version__
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json, write_text
from convrec_r1.base.plugins import source_digests
from convrec_r1.run.identity import LEFT_OUT, SOURCES, as_dict, differences, left_out


class State(Enum):
    new = "new"
    interrupted = "interrupted"
    complete = "complete"


class RunFolder:
    """Paths of one run. `begin` decides whether there is something to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.summary = path / "summary.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.eval = path / "eval"
        self.rollouts = path / "rollouts"
        self.figures = path / "figures"
        self.faults = path / "faults"
        self.log = path / "run.log"

    def state(self) -> State:
        if not self.config.exists():
            return State.new
        return State.complete if self.summary.exists() else State.interrupted

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While the block lasts no other process has the folder; the lock goes with the process, however that ends.

        Raises UserError if another one has it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"Another process is at this run: {self.path}. Two would write into each other's files. Wait for it or stop "
                "it; another folder (hydra.run.dir=DIR) makes another run."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def begin(self, cfg: DictConfig, git_sha: str | None = None) -> State:
        """Claim the folder for a run of `cfg`. Return what was found: a new, an interrupted or a complete run of this config.

        config.yaml of a new run starts with the version of the package, its commit, and digests of users' source files.

        Raises:
            UserError: the folder holds a run of another config.
        """
        if cfg.fresh:
            self.clear()
        config, without = as_dict(cfg, resolve=True), left_out(cfg)
        state = self.state()
        if state is State.new:
            record: dict[str, Any] = {"version": __version__, "git_sha": git_sha, LEFT_OUT: sorted(without)}
            if sources := source_digests(config):
                record[SOURCES] = sources
            write_text(self.config, OmegaConf.to_yaml(OmegaConf.create(record)) + OmegaConf.to_yaml(cfg, resolve=True))
            return state
        changed = differences(OmegaConf.to_container(OmegaConf.load(self.config)), config, without)
        if changed:
            listed = "\n".join(f"  {key}: {before} there, {now} now" for key, before, now in changed[:10])
            raise UserError(
                f"{self.path} holds a run of another config:\n{listed}\n"
                "Choose another folder (hydra.run.dir=DIR), or fresh=true to start over and lose that run."
            )
        return state

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, last of all: a folder that has it holds a finished run."""
        write_json(self.summary, {"status": "complete", "version": __version__, **summary})

    def clear(self) -> None:
        """Remove what a run wrote here, and nothing else."""
        for file in (self.summary, self.config, self.metrics, self.log):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.eval, self.rollouts, self.figures, self.faults):
            shutil.rmtree(folder, ignore_errors=True)
        for extra in ("report.md", "metrics.csv", "dataset", "arrow"):  # the last two are links
            (self.path / extra).unlink(missing_ok=True)

    def discard_if_empty(self, outputs: Path) -> None:
        """Hydra makes the folder before the config is checked; one in which nothing was written goes away again, and
        so do the folders above it up to `outputs`, if they are empty. Nothing above `outputs` is touched."""
        root = outputs.absolute()
        path = self.path.absolute()
        with contextlib.suppress(OSError):
            path.rmdir()
            while path != root and root in path.parents:
                path = path.parent
                path.rmdir()
