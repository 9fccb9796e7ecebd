"""The folder of a run, outputs/<study>/<run>/: its files, its lock, and whether it can be resumed."""

import contextlib
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from convrec_r1 import __version__
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json, write_text
from convrec_r1.base.locks import Timeout, locked
from convrec_r1.run.identity import LEFT_OUT, SOURCES, as_dict, differences, left_out, with_sources


class State(Enum):
    """State of the run in a folder."""

    new = "new"
    interrupted = "interrupted"
    complete = "complete"


class RunFolder:
    """Paths of one run. `begin` finds out whether the run is new, interrupted or complete."""

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
        self.package = path / "package"
        self.hub = path / "hub"
        self.log = path / "run.log"
        self.inputs = path / "inputs.json"

    def state(self) -> State:
        """Return the state of the run in the folder."""
        if not self.config.exists():
            return State.new
        return State.complete if self.summary.exists() else State.interrupted

    @contextlib.contextmanager
    def alone(self, lock: str = ".lock", timeout: float = 0) -> Iterator[None]:
        """Hold the folder's lock while the block runs. The operating system frees it if the process is killed.

        Args:
            lock: name of the lock's file.
            timeout: seconds to wait for it.
        Raises:
            UserError: another process holds the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / lock, timeout))
            except Timeout:
                raise UserError(
                    f"Another process works on this run: {self.path}. Wait for it, stop it, or choose another folder "
                    "(hydra.run.dir=DIR)."
                ) from None
            yield

    def begin(self, cfg: DictConfig, git_sha: str | None = None) -> State:
        """Claim the folder for a run of `cfg`. Return the state in which it is found.

        config.yaml of a new run starts with the version of the package, its commit, and digests of plug-in source files.

        Raises:
            UserError: the folder holds a run of another config.
        """
        if cfg.fresh:
            self.clear()
        config, without = with_sources(as_dict(cfg, resolve=True)), left_out(cfg)
        state = self.state()
        if state is State.new:
            record: dict[str, Any] = {"version": __version__, "git_sha": git_sha, LEFT_OUT: sorted(without)}
            if SOURCES in config:
                record[SOURCES] = config[SOURCES]
            write_text(self.config, OmegaConf.to_yaml(OmegaConf.create(record)) + OmegaConf.to_yaml(cfg, resolve=True))
            return state
        changed = differences(OmegaConf.to_container(OmegaConf.load(self.config)), config, without)
        if changed:
            listed = "\n".join(f"  {key}: {before} there, {now} now" for key, before, now in changed[:10])
            raise UserError(
                f"{self.path} holds a run of another config:\n{listed}\n"
                "Choose another folder (hydra.run.dir=DIR), or delete that run and start again with fresh=true."
            )
        return state

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, the last file of a run: a folder that has it is complete."""
        write_json(self.summary, {"status": "complete", "version": __version__, **summary})

    def clear(self) -> None:
        """Delete the files of a run. Other files in the folder stay."""
        for file in (self.summary, self.config, self.metrics, self.log, self.inputs):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.eval, self.rollouts, self.figures, self.faults, self.package, self.hub):
            shutil.rmtree(folder, ignore_errors=True)
        for extra in ("report.md", "metrics.csv", "dataset", "arrow"):  # the last two are links
            (self.path / extra).unlink(missing_ok=True)

    def discard_if_empty(self, outputs: Path) -> None:
        """Delete the folder if it is empty, and empty folders above it up to `outputs`.

        Hydra makes the folder before the config is checked.
        """
        root = outputs.absolute()
        path = self.path.absolute()
        with contextlib.suppress(OSError):
            path.rmdir()
            while path != root and root in path.parents:
                path = path.parent
                path.rmdir()
