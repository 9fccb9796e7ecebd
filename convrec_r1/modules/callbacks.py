"""What happens beside training: checkpoints, leaving when told to, evaluation and what follows from it, the progress bar."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import point
from convrec_r1.base.progress import bar
from convrec_r1.base.signals import stop
from convrec_r1.modules.guard import Guard
from convrec_r1.modules.step import StepModule
from convrec_r1.policy.weights import save_policy
from convrec_r1.run.checkpoints import STATE, newest_step, seal

_log = logging.getLogger(__name__)


class Marks:
    """Names that are to point to a checkpoint of the current step: what watches a run asks, `Checkpoints` writes."""

    def __init__(self) -> None:
        self._asked: list[str] = []

    def ask(self, name: str) -> None:
        self._asked.append(name)

    def take(self) -> list[str]:
        asked, self._asked = self._asked, []
        return asked


class Checkpoints(pl.Callback):
    """checkpoints/<step>/{trainer.ckpt, policy/} every so many of our steps and where training ends; `last` points to the
    newest. Steps that were marked get a policy/, and the mark points to it. Comes after the callbacks that mark.

    A checkpoint is written under another name, sealed (run/checkpoints.py), and renamed when it is whole. Raises UserError
    where the disk has no room for it: the one before stays.
    """

    def __init__(self, folder: Path, *, every: int, total: int, keep: int, marks: Marks) -> None:
        self.folder, self.every, self.total, self.keep, self.marks = folder, every, total, keep, marks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, _ours(pl_module), whole=False)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        module = _ours(pl_module)
        ends = module.step == self.total or trainer.should_stop
        self._save(trainer, module, whole=ends or module.step % self.every == 0)

    def _save(self, trainer: pl.Trainer, module: StepModule, *, whole: bool) -> None:
        """whole: one to go on from, with the trainer's state."""
        links = self.marks.take() + (["last"] if whole else [])
        if not links:
            return
        target = self.folder / f"{module.step:06d}"
        scratch = self.folder / f".{target.name}.partial"
        if trainer.is_global_zero:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        trainer.strategy.barrier()
        try:
            if whole:
                trainer.save_checkpoint(scratch / STATE)
            save_policy(module.policy, scratch / "policy", first=trainer.is_global_zero)
            if trainer.is_global_zero:
                seal(scratch)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not _no_room(error):
                raise
            raise UserError(self._full(module.step)) from error
        if trainer.is_global_zero:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(scratch, target)
            for link in links:
                point(self.folder / link, target.name)
            self._prune()
        trainer.strategy.barrier()

    def _full(self, step: int) -> str:
        before = newest_step(self.folder)
        stays = "there is none before it" if before is None else f"the one of step {before} is whole and stays"
        free = shutil.disk_usage(self.folder).free / 2**20
        return (
            f"The checkpoint of step {step} could not be written: {self.folder} has no room ({free:,.0f} MiB free); {stays}. "
            "Make room, or lower trainer.keep_checkpoints, and give the same command: it goes on from there."
        )

    def _prune(self) -> None:
        """Leave the newest checkpoints to go on from, and what names point to."""
        steps = sorted(self.folder.glob("[0-9]*"))
        kept = {path.name for path in [s for s in steps if (s / STATE).exists()][-self.keep :]}
        kept |= {os.readlink(path) for path in self.folder.iterdir() if path.is_symlink()}
        for step in steps:
            if step.name not in kept:
                shutil.rmtree(step, ignore_errors=True)


class Leave(pl.Callback):
    """Ends training after a step in which the run was told to stop, on every process after the same one. Comes before
    `Checkpoints`, which then saves where training ends."""

    def __init__(self, within: float) -> None:
        """within: seconds that a step may go on for after the signal."""
        self.within = within
        self.told: int | None = None
        """The signal that training ended for."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop.wait_for_step(self.within)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        told = int(_ours(pl_module).max_over_devices(float(stop.number or 0)))
        if told:
            self.told = told
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop.go_on()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        stop.go_on()


class Watch(pl.Callback):
    """Evaluates every so many steps, keeps the best policy, and ends training that no longer gains or has collapsed.

    Its state is in the trainer's checkpoints: a run that goes on judges as if it had never stopped.
    """

    def __init__(
        self,
        evaluate: Callable[[int], float],
        *,
        every: int,
        total: int,
        marks: Marks,
        patience: int | None = None,
        guard: Guard | None = None,
        stop_on_collapse: bool = True,
    ) -> None:
        """evaluate: of a step, the value that the best policy has most of. every: 0: no evaluation."""
        self.evaluate, self.every, self.total, self.marks, self.patience = evaluate, every, total, marks, patience
        self.guard, self.stop_on_collapse = guard, stop_on_collapse
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0
        self.collapses: list[dict[str, Any]] = []
        """Each {"step", "why"}."""
        self.stopped: dict[str, Any] | None = None
        """{"step", "why"} where training ended before its last step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopped:  # the run was cut off between its end and its evaluation
            trainer.should_stop = True
        elif self.every and _ours(pl_module).step == 0:
            self._evaluate(trainer, 0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        module = _ours(pl_module)
        if self.every and (module.step % self.every == 0 or module.step == self.total):
            self._evaluate(trainer, module.step)
        if self.guard and (broken := self.guard.observe(module.latest)):
            self._collapse(trainer, module.step, "; ".join(broken))

    def _evaluate(self, trainer: pl.Trainer, step: int) -> None:
        value = self.evaluate(step)
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
            self.marks.ask("best")
            return
        self.since_best += 1
        if self.patience and self.since_best >= self.patience and step < self.total:
            self._stop(
                trainer, step, f"no gain in {self.since_best} evaluations over {self.best:.4f} at step {self.best_step}"
            )

    def _collapse(self, trainer: pl.Trainer, step: int, why: str) -> None:
        if not self.collapses:
            self.marks.ask("collapsed")  # the first one: later ones follow from it
        self.collapses.append({"step": step, "why": why})
        goes_on = "" if self.stop_on_collapse else " Training goes on (guard.action=warn)."
        _log.warning("Collapse at step %d: %s. checkpoints/collapsed is the first.%s", step, why, goes_on)
        if self.stop_on_collapse and step < self.total:
            self._stop(trainer, step, f"collapse: {why}")

    def _stop(self, trainer: pl.Trainer, step: int, why: str) -> None:
        self.stopped = {"step": step, "why": why}
        trainer.should_stop = True
        _log.warning("Training ends at step %d of %d: %s", step, self.total, why)

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_step", "since_best", "collapses", "stopped")
        state = {name: getattr(self, name) for name in names}
        return state | {"guard": self.guard.state_dict() if self.guard else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        guard = state_dict.pop("guard")
        if self.guard and guard:
            self.guard.load_state_dict(guard)
        for name, value in state_dict.items():
            setattr(self, name, value)


class ProgressBar(pl.Callback):
    """One bar over our steps, with the time left and what the module last said (`module.progress`)."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total = description, total
        self._stack = contextlib.ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bar = self._stack.enter_context(bar(self.description, self.total, _ours(pl_module).step))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx) -> None:
        self._bar.advance(1, getattr(pl_module, "progress", ""))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stack.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stack.close()


def _ours(module: pl.LightningModule) -> StepModule:
    """The module that `fit` trains, by its own type: Lightning's hooks are declared for any."""
    assert isinstance(module, StepModule)
    return module


def _no_room(error: BaseException) -> bool:
    """Whether a file could not be written for want of room: torch says so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return "PytorchStreamWriter failed" in str(error) or "No space left on device" in str(error)
