"""What happens beside training: checkpoints, evaluation, the progress bar."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl

from convrec_r1.modules.step import StepModule
from convrec_r1.rollout.weights import whole_weights
from convrec_r1.run.progress import bar


class Checkpoints(pl.Callback):
    """checkpoints/<step>/{trainer.ckpt, policy/} every so many of our steps and at the end; `last` points to the newest.

    A checkpoint is written under another name and renamed when it is whole.
    """

    def __init__(self, folder: Path, *, every: int, total: int, keep: int) -> None:
        self.folder, self.every, self.total, self.keep = folder, every, total, keep

    def on_train_batch_end(self, trainer: pl.Trainer, module: StepModule, *_) -> None:
        if module.step % self.every == 0 or module.step == self.total:
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: StepModule) -> None:
        target = self.folder / f"{module.step:06d}"
        scratch = self.folder / f".{target.name}.partial"
        if trainer.is_global_zero:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        trainer.strategy.barrier()
        trainer.save_checkpoint(scratch / "trainer.ckpt")
        with whole_weights(module.policy):
            if trainer.is_global_zero:
                module.policy.save(scratch / "policy")
        if trainer.is_global_zero:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(scratch, target)
            point(self.folder / "last", target.name)
            for old in sorted(self.folder.glob("[0-9]*"))[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        trainer.strategy.barrier()


class EvaluateEvery(pl.Callback):
    """Calls `evaluate(step)` before the first step, every so many steps, and not at the end: the run does that."""

    def __init__(self, evaluate: Callable[[int], None], *, every: int, total: int) -> None:
        self.evaluate, self.every, self.total = evaluate, every, total

    def on_train_start(self, trainer: pl.Trainer, module: StepModule) -> None:
        if self.every and module.step == 0:
            self.evaluate(0)

    def on_train_batch_end(self, trainer: pl.Trainer, module: StepModule, *_) -> None:
        if self.every and (module.step % self.every == 0 or module.step == self.total):
            self.evaluate(module.step)


class ProgressBar(pl.Callback):
    """One bar over our steps, with the time left and what the module last said (`module.progress`)."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total = description, total
        self._stack = contextlib.ExitStack()

    def on_train_start(self, trainer: pl.Trainer, module: StepModule) -> None:
        self._bar = self._stack.enter_context(bar(self.description, self.total, module.step))

    def on_train_batch_end(self, trainer: pl.Trainer, module: StepModule, *_) -> None:
        self._bar.advance(1, getattr(module, "progress", ""))

    def on_train_end(self, trainer: pl.Trainer, module: StepModule) -> None:
        self._stack.close()

    def on_exception(self, trainer: pl.Trainer, module: StepModule, exception: BaseException) -> None:
        self._stack.close()


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing what it was in one step."""
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    os.replace(scratch, link)
