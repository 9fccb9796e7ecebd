"""Callbacks of training: checkpoints, stopping on signals, evaluation with early stopping and collapse guard, progress."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks as pl_callbacks

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import point, pointed
from convrec_r1.base.progress import Bar, bar, console
from convrec_r1.base.signals import stop
from convrec_r1.modules.guard import Guard
from convrec_r1.modules.step import StepModule
from convrec_r1.policy.weights import save_policy
from convrec_r1.run.checkpoints import STATE, newest_step, seal

_log = logging.getLogger(__name__)


class Checkpoints(pl_callbacks.Checkpoint):
    """Writer of checkpoints/<step>/{trainer.ckpt, policy/}, every few steps and where training ends.

    `last` links to the newest checkpoint. A checkpoint is written under a temporary name, sealed with checksums
    (run/checkpoints.py) and renamed, so that a checkpoint under its own name is complete.

    Not Lightning's ModelCheckpoint: that writes one file without checksums, and no policy folder; and it counts optimizer
    steps, of which one of our steps makes several (algo.mu, algo.minibatches).
    """

    def __init__(self, folder: Path, *, every: int, total: int, keep: int) -> None:
        """
        Args:
            folder: where checkpoints are written.
            every: steps between checkpoints.
            total: last step of training.
            keep: number of checkpoints to keep that training can resume from.
        """
        self.folder, self.every, self.total, self.keep = folder, every, total, keep
        self._links: list[str] = []

    def link(self, name: str) -> None:
        """Save the policy of the current step, and make `name` a link to it. The link protects it from deletion."""
        self._links.append(name)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, _step_module(pl_module), resumable=False)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        module = _step_module(pl_module)
        ends = module.step == self.total or trainer.should_stop
        self._save(trainer, module, resumable=ends or module.step % self.every == 0)

    def _save(self, trainer: pl.Trainer, module: StepModule, *, resumable: bool) -> None:
        """Write the checkpoint of this step if it is due. resumable: with the trainer's state.

        Raises:
            UserError: the disk is full. The previous checkpoint stays.
        """
        links, self._links = self._links + (["last"] if resumable else []), []
        if not links:
            return
        target = self.folder / f"{module.step:06d}"
        scratch = self.folder / f".{target.name}.partial"
        if trainer.is_global_zero:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        trainer.strategy.barrier()
        try:
            if resumable:
                trainer.save_checkpoint(scratch / STATE)
            save_policy(module.policy, scratch / "policy", first=trainer.is_global_zero)
            if trainer.is_global_zero:
                seal(scratch)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not _disk_is_full(error):
                raise
            raise UserError(self._disk_full(module.step)) from error
        if trainer.is_global_zero:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(scratch, target)
            for link in links:
                point(self.folder / link, target.name)
            self._prune()
        trainer.strategy.barrier()

    def _disk_full(self, step: int) -> str:
        before = newest_step(self.folder)
        kept = "There is no earlier checkpoint" if before is None else f"The checkpoint of step {before} is intact"
        free = shutil.disk_usage(self.folder).free / 2**20
        return (
            f"The checkpoint of step {step} could not be written: no space left in {self.folder} ({free:,.0f} MiB free). "
            f"{kept}. Free some space or lower trainer.keep_checkpoints; the same command then resumes."
        )

    def _prune(self) -> None:
        """Delete checkpoints, except the newest resumable ones and those with a link."""
        steps = sorted(self.folder.glob("[0-9]*"))
        kept = {path.name for path in [s for s in steps if (s / STATE).exists()][-self.keep :]}
        kept |= set(filter(None, map(pointed, self.folder.iterdir())))
        for step in steps:
            if step.name not in kept:
                shutil.rmtree(step, ignore_errors=True)


class StopOnSignal(pl.Callback):
    """End training after the step in which a signal arrived, on every process after the same step.

    Not Lightning's own signal handling: on SIGTERM it raises after the step without saving it, on Ctrl-C within the step.
    """

    def __init__(self, within: float) -> None:
        """within: seconds that a step may take after the signal."""
        self.within = within
        self.number: int | None = None
        """The signal that ended training."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop.wait_for_step(self.within)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        number = int(_step_module(pl_module).max_over_devices(float(stop.number or 0)))
        if number:
            self.number = number
            trainer.should_stop = True


class Watch(pl.Callback):
    """Evaluation every few steps: keeps the best policy, and stops training that no longer improves or has collapsed.

    Its state is part of checkpoints, so a resumed run takes the same decisions.

    Not Lightning's EarlyStopping: that decides at the end of an epoch or of a validation loop, and training is one epoch
    without a validation loop, because evaluation samples lists with the rollout engine.
    """

    def __init__(
        self,
        evaluate: Callable[[int], float],
        *,
        every: int,
        total: int,
        patience: int | None = None,
        guard: Guard | None = None,
        stop_on_collapse: bool = True,
    ) -> None:
        """
        Args:
            evaluate: step -> value of the metric; higher is better.
            every: steps between evaluations. 0: never evaluate.
            total: last step of training.
            patience: evaluations without improvement after which training stops. None: do not stop.
            guard: collapse guard. None: no guard.
            stop_on_collapse: whether a collapse stops training.
        """
        self.evaluate, self.every, self.total, self.patience = evaluate, every, total, patience
        self.guard, self.stop_on_collapse = guard, stop_on_collapse
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0
        self.collapses: list[dict[str, Any]] = []
        """{"step", "why"} of each collapse."""
        self.stopped: dict[str, Any] | None = None
        """{"step", "why"} if training stopped before its last step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopped:  # a resumed run that had stopped, but was interrupted before its final evaluation
            trainer.should_stop = True
        elif self.every and _step_module(pl_module).step == 0:
            self._evaluate(trainer, 0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        module = _step_module(pl_module)
        if self.every and (module.step % self.every == 0 or module.step == self.total):
            self._evaluate(trainer, module.step)
        if self.guard and (broken := self.guard.observe(module.latest)):
            self._collapse(trainer, module.step, "; ".join(broken))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del self.evaluate  # the function holds the policy, and this callback outlives the training

    def _evaluate(self, trainer: pl.Trainer, step: int) -> None:
        value = self.evaluate(step)
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
            _link(trainer, "best")
            return
        self.since_best += 1
        if self.patience and self.since_best >= self.patience and step < self.total:
            best = f"{self.best:.4f} at step {self.best_step}"
            why = f"no improvement over {best} in {self.since_best} evaluations"
            _log.warning("Training stops at step %d of %d: %s (eval.patience).", step, self.total, why)
            self._stop(trainer, step, why)

    def _collapse(self, trainer: pl.Trainer, step: int, why: str) -> None:
        if not self.collapses:  # later ones follow from the first
            _link(trainer, "collapsed")
        self.collapses.append({"step": step, "why": why})
        stops = self.stop_on_collapse and step < self.total
        then = " Training continues (guard.action=warn)." if not self.stop_on_collapse else ""
        then = f" Training stops {self.total - step} steps early (guard.action=stop)." if stops else then
        _log.warning("Collapse at step %d: %s. Its policy is in checkpoints/collapsed.%s", step, why, then)
        if stops:
            self._stop(trainer, step, f"collapse: {why}")

    def _stop(self, trainer: pl.Trainer, step: int, why: str) -> None:
        self.stopped = {"step": step, "why": why}
        trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("best", "best_step", "since_best", "collapses", "stopped")}
        return state | {"guard": self.guard.state_dict() if self.guard else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        guard = state_dict.pop("guard")
        if self.guard and guard:
            self.guard.load_state_dict(guard)
        for name, value in state_dict.items():
            setattr(self, name, value)


class ProgressBar(pl_callbacks.ProgressBar):
    """Lightning's progress bar, drawn by base/progress.py: steps, time left, `module.progress` and prog_bar=True metrics.

    Not Lightning's RichProgressBar: without a terminal that shows nothing until training ends. This one prints a line now
    and then, with the run's label in a sweep.
    """

    def __init__(self, description: str, total: int) -> None:
        super().__init__()
        self.description, self.total = description, total
        self._enabled = True
        self._stack = contextlib.ExitStack()

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        console.print(*args, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = _step_module(pl_module).step
        shown = bar(self.description, self.total, done) if self._enabled else contextlib.nullcontext(Bar())
        self._bar = self._stack.enter_context(shown)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        notes = [f"{name} {value:.3g}" for name, value in trainer.progress_bar_metrics.items()]
        self._bar.advance(1, "  ".join(filter(None, [getattr(pl_module, "progress", ""), *notes])))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stack.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stack.close()


def _link(trainer: pl.Trainer, name: str) -> None:
    """Have `Checkpoints`, which Lightning calls after all other callbacks, save this step under a name as well."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoints):
            callback.link(name)


def _step_module(module: pl.LightningModule) -> StepModule:
    """Return the module with its own type: Lightning declares its hooks for any module."""
    assert isinstance(module, StepModule)
    return module


def _disk_is_full(error: BaseException) -> bool:
    """Return whether a file could not be written because the disk is full. torch says so only in the message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return "PytorchStreamWriter failed" in str(error) or "No space left on device" in str(error)
