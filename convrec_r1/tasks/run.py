"""Set up a task, run it, and clean up after it."""

import contextlib
import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from convrec_r1.base import progress
from convrec_r1.base.logs import start_logging
from convrec_r1.base.processes import is_first
from convrec_r1.config.parts import tracker
from convrec_r1.config.schema import Config
from convrec_r1.doctor.task import doctor
from convrec_r1.run.folder import RunFolder, State
from convrec_r1.run.identity import as_dict
from convrec_r1.run.tracker import Tracker
from convrec_r1.studies.compare import compare
from convrec_r1.studies.workspace import publish
from convrec_r1.tasks import inputs
from convrec_r1.tasks.distill import distill, dry_run
from convrec_r1.tasks.evaluate import evaluate
from convrec_r1.tasks.kept import kept
from convrec_r1.tasks.train import train

_log = logging.getLogger(__name__)

Task = Callable[[Config, RunFolder, Callable[[], Tracker]], dict[str, Any]]
TASKS: dict[str, Task] = {"train": train, "eval": evaluate, "distill": distill}
"""Tasks that write a run folder, which is locked, resumed, and finished once."""

READERS: dict[str, Callable[[Config, Path], object]] = {
    "compare": lambda cfg, folder: compare(
        cfg.runs, folder, cfg.compare, level=cfg.eval.level, resamples=cfg.eval.resamples
    ),
    "workspace": lambda cfg, _: publish(cfg.study, cfg.logger, n=cfg.n, ks=cfg.ks),
    "kept": lambda cfg, _: kept(cfg),
    "dry_run": lambda cfg, _: dry_run(cfg),
    "doctor": lambda cfg, _: doctor(cfg),
}
"""Tasks that write no run folder. They can be repeated."""


def execute(cfg: Config, folder: RunFolder, sha: str | None, choices: Sequence[str] = ()) -> dict[str, Any]:
    """Run `cfg.task` in `folder`, unless the folder holds the complete run. Return the content of summary.json.

    Args:
        cfg: Checked and resolved config.
        folder: Folder of the run.
        sha: Commit of the code.
        choices: Sentences on the resolved options, for the log.
    """
    first = is_first()
    progress.set_enabled(first)
    start_logging(None, is_first=first)
    task = "dry_run" if cfg.distill.dry_run and cfg.task.name == "distill" else cfg.task.name
    if task in READERS:
        try:
            READERS[task](cfg, folder.path)
        finally:
            folder.discard_if_empty(Path(cfg.outputs))
        return {}
    with folder.alone() if first else contextlib.nullcontext():
        return _make(cfg, folder, sha, choices)


def _make(cfg: Config, folder: RunFolder, sha: str | None, choices: Sequence[str]) -> dict[str, Any]:
    first = is_first()
    composed = OmegaConf.structured(cfg)
    if first:
        state = folder.begin(composed, sha)
        if state is State.complete:
            inputs.check_complete(cfg, folder)
            _log.info("This run is complete: %s (fresh=true starts over)", folder.path)
            return json.loads(folder.summary.read_text(encoding="utf-8"))
        start_logging(folder.log, is_first=True)
        _log.info("%s %s", "Resuming" if state is State.interrupted else "Run", folder.path)
        for sentence in choices:
            _log.info(sentence)
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    pl.seed_everything(cfg.seed, verbose=False)
    plain = as_dict(composed, resolve=True)
    started = time.monotonic()
    try:
        summary = TASKS[cfg.task.name](cfg, folder, lambda: tracker(cfg, plain, folder, sha))
        if first:
            folder.finish({"git_sha": sha, "seconds": round(time.monotonic() - started, 1), **summary})
            _log.info("Done in %.0f s: %s", time.monotonic() - started, folder.path)
        return summary
    finally:
        start_logging(None, is_first=first)  # closes run.log
        gc.collect()
