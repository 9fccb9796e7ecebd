"""Set up a task, run it, and clean up after it. A task's module is imported when it runs: those that train take seconds."""

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from convrec_r1.base import progress
from convrec_r1.base.files import read_json
from convrec_r1.base.imports import large_imports
from convrec_r1.base.logs import start_logging
from convrec_r1.base.processes import is_first
from convrec_r1.cluster import train
from convrec_r1.cluster.connect import connect
from convrec_r1.cluster.process import LEASE, inside
from convrec_r1.config.asked import require_all
from convrec_r1.config.parts import tracker
from convrec_r1.config.resolve import NO_MODEL
from convrec_r1.config.schema import Config
from convrec_r1.modules.hardware import training_group
from convrec_r1.run.folder import RunFolder, State
from convrec_r1.run.identity import as_dict

if TYPE_CHECKING:
    from convrec_r1.run.tracker import Tracker

_log = logging.getLogger(__name__)

Task = Callable[[Config, RunFolder, Callable[[], "Tracker"]], dict[str, Any]]
TASKS = {
    "train": "tasks.train.train",
    "eval": "tasks.evaluate.evaluate",
    "distill": "tasks.distill.distill",
    "score": "tasks.score.score",
}
"""Tasks that write a run folder, which is locked, resumed, and finished once: where their functions are."""
REPEATED = ("score",)
"""Tasks of seconds whose files may have changed: they start over where the others are complete."""

READERS: dict[str, tuple[str, Callable[[Any, Config, Path], object]]] = {
    "compare": (
        "studies.compare.compare",
        lambda compare, cfg, folder: compare(
            cfg.runs, folder, cfg.compare, level=cfg.eval.level, resamples=cfg.eval.resamples
        ),
    ),
    "workspace": (
        "studies.workspace.publish",
        lambda publish, cfg, _: publish(cfg.study, cfg.logger, n=cfg.n, ks=cfg.ks),
    ),
    "kept": ("tasks.kept.kept", lambda kept, cfg, _: kept(cfg)),
    "dry_run": ("tasks.distill.dry_run", lambda dry_run, cfg, _: dry_run(cfg)),
    "publish": ("tasks.publish.publish", lambda publish, cfg, _: publish(cfg)),
    "doctor": ("doctor.task.doctor", lambda doctor, cfg, _: doctor(cfg)),
    "recommend": ("tasks.recommend.recommend", lambda recommend, cfg, _: recommend(cfg)),
    "chat": ("tasks.chat.chat", lambda chat, cfg, _: chat(cfg)),
    "serve": ("tasks.serve.serve", lambda serve, cfg, _: serve(cfg)),
}
"""Tasks that write no run folder and can be repeated: where their functions are, and how they are called."""


def execute(cfg: Config, folder: RunFolder, sha: str | None, choices: Sequence[str] = ()) -> dict[str, Any]:
    """Run `cfg.task` in `folder`, unless the folder holds the complete run. Return the content of summary.json.

    Args:
        cfg: Checked and resolved config.
        folder: Folder of the run.
        sha: Commit of the code.
        choices: Sentences on the resolved options, for the log.
    """
    task = "dry_run" if cfg.distill.dry_run and cfg.task.name in TASKS else cfg.task.name
    # Imported before logging starts: Lightning's import sets log levels.
    if task in READERS:
        path, call = READERS[task]
        reader = _function(path)
        _start()
        try:
            call(reader, cfg, folder.path)
        finally:
            folder.discard_if_empty(Path(cfg.outputs))
        return {}
    if inside():  # an earlier group may still be ending, on a host that was cut off (cluster.process.LEASE)
        with folder.alone(".trainer.lock", timeout=3 * LEASE) if is_first() else contextlib.nullcontext():
            return _make(task, cfg, folder, sha, choices)
    with folder.alone() if is_first() else contextlib.nullcontext():
        if cfg.cluster.on_ray and (cfg.fresh or folder.state() is not State.complete):
            return _on_ray(task, cfg, folder, sha, choices)
        return _make(task, cfg, folder, sha, choices)


def _on_ray(task: str, cfg: Config, folder: RunFolder, sha: str | None, choices: Sequence[str]) -> dict[str, Any]:
    """Run a task with a folder in this process, connected to Ray; or in processes of Ray Train, if training takes several."""
    with connect(cfg.cluster) as connection:
        require_all(cfg, connection)
        choices = [*choices, f"{connection}."]
        if task != "train" or cfg.trainer.world == 1:
            return _make(task, cfg, folder, sha, choices)
        _start()
        if cfg.fresh:
            folder.clear()
            cfg = replace(cfg, fresh=False)  # processes that restart resume
        job = partial(_execute_noting, cfg, RunFolder(folder.path.absolute()), sha, choices)
        group, within = training_group(cfg.trainer), cfg.trainer.exit_within
        return train.run(job, group, cfg.cluster, folder=folder.path, within=within)


def _execute_noting(
    cfg: Config, folder: RunFolder, sha: str | None, choices: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """Execute the task in one of several processes. notes: more sentences for the log."""
    return execute(cfg, folder, sha, [*choices, *notes])


def _function(path: str) -> Callable[..., Any]:
    """Import a function by its path within the package."""
    module, _, name = path.rpartition(".")
    with large_imports():
        return getattr(import_module(f"convrec_r1.{module}"), name)


def _start() -> None:
    progress.set_enabled(is_first())
    start_logging(None, is_first=is_first())


def _make(task: str, cfg: Config, folder: RunFolder, sha: str | None, choices: Sequence[str]) -> dict[str, Any]:
    """Run a task with a folder in this process."""
    run: Task = _function(TASKS[task])  # before logging starts, as above
    _start()
    first = is_first()
    composed = OmegaConf.structured(cfg)
    if first:
        state = folder.begin(composed, sha)
        if state is State.complete and cfg.task.name in REPEATED:
            folder.clear()
            state = folder.begin(composed, sha)
        if state is State.complete:
            from convrec_r1.tasks import inputs  # imported late: it loads what trains

            inputs.check_complete(cfg, folder)
            _log.info("This run is complete: %s (fresh=true starts over)", folder.path)
            return read_json(folder.summary)
        start_logging(folder.log, is_first=True)
        resumes = state is State.interrupted and cfg.task.name not in REPEATED
        _log.info("%s %s", "Resuming" if resumes else "Run", folder.path)
        for sentence in choices:
            _log.info(sentence)
    if cfg.task.name not in NO_MODEL:
        _seed(cfg)
    plain = as_dict(composed, resolve=True)
    started = time.monotonic()
    try:
        summary = run(cfg, folder, lambda: tracker(cfg, plain, folder, sha))
        if first:
            folder.finish({"git_sha": sha, "seconds": round(time.monotonic() - started, 1), **summary})
            _log.info("Done in %.0f s: %s", time.monotonic() - started, folder.path)
        return summary
    finally:
        start_logging(None, is_first=first)  # closes run.log
        gc.collect()


def _seed(cfg: Config) -> None:
    import pytorch_lightning as pl
    import torch

    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    pl.seed_everything(cfg.seed, verbose=False)
