"""Run a module under a Lightning Trainer, resuming from its newest checkpoint."""

import logging
import pickle
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks as pl_callbacks
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import FSDPStrategy

from convrec_r1.base import processes
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.base.signals import Interrupted, stop
from convrec_r1.cluster import process as on_ray
from convrec_r1.modules.callbacks import Checkpoints, ProgressBar, StopOnSignal
from convrec_r1.modules.config import TrainerConfig
from convrec_r1.modules.step import StepLoader, StepModule
from convrec_r1.run.checkpoints import STATE, newest

_log = logging.getLogger(__name__)


def make_trainer(cfg: TrainerConfig, callbacks: Sequence[pl.Callback], loggers: Sequence[Logger] = ()) -> pl.Trainer:
    """Build Lightning's Trainer for modules that make their own optimizer updates."""
    processes, environment = _processes(cfg)
    return pl.Trainer(
        accelerator=cfg.accelerator,
        num_nodes=cfg.nodes,
        **processes,
        precision=cfg.precision or "32-true",  # pyright: ignore[reportArgumentType]  # a string of the config; Lightning knows a few
        plugins=[StateFile(), *environment],
        max_epochs=1,  # the loader knows the number of steps
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, pl_callbacks.Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, pl_callbacks.ProgressBar) for c in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,  # StepLoader deals out whole groups itself
    )


def fit(
    module: StepModule,
    loader: StepLoader,
    cfg: TrainerConfig,
    checkpoints: Path,
    *,
    description: str,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train `module` for the loader's steps, resuming from the newest undamaged checkpoint if there is one.

    Raises:
        Interrupted: the run was told to stop; everything is saved.
        UserError: the checkpoint holds more than plain tensors and values.
    """
    total = len(loader)
    on_signal = StopOnSignal(cfg.exit_within)
    saving = Checkpoints(checkpoints, every=cfg.checkpoint_every, total=total, keep=cfg.keep_checkpoints)
    module.faults.folder = checkpoints.parent / "faults"
    has_bar = any(isinstance(c, pl_callbacks.ProgressBar) for c in callbacks)  # Lightning allows one
    bars = [] if has_bar else [ProgressBar(description, total)]
    trainer = make_trainer(cfg, [*callbacks, on_signal, *bars, saving], module.tracker.loggers)
    start = newest(checkpoints)
    if start:
        _log.info("Resuming from %s", start)
    state = str(start / STATE) if start else None
    try:
        trainer.fit(module, train_dataloaders=loader, ckpt_path=state, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint {state} holds more than plain tensors and values, and was not opened: it could run code. Remove "
            f"{start} to resume from the one before, or train again with fresh=true."
        ) from error
    finally:
        stop.go_on()
        for callback in callbacks:  # Lightning gave them methods of the module, which would keep it in memory
            vars(callback).pop("log", None)
            vars(callback).pop("log_dict", None)
    if on_signal.number is not None and module.step < total:
        name = signal.Signals(on_signal.number).name
        raise Interrupted(
            on_signal.number, f"{name}: saved at step {module.step}. The same command resumes from there."
        )


def device_for(cfg: TrainerConfig) -> torch.device:
    """Return the device of policies that are evaluated outside a Trainer."""
    if on_ray.inside():
        return on_ray.device()
    if cfg.accelerator in ("gpu", "auto") and torch.cuda.is_available():
        return torch.device("cuda", processes.local_rank())
    return torch.device("cpu")


class StateFile(TorchCheckpointIO):
    """Writer of the trainer's state, tensor by tensor to its file, which is there whole or not at all.

    Lightning's own builds the whole file in memory first: 12 bytes a parameter, and more while it grows.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # of a user's own ModelCheckpoint
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as scratch, scratch.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own, while it closes what a full disk left
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


class Sharded(FSDPStrategy):
    """FSDP around each forward pass of the policy.

    Lightning runs the whole training step inside one forward pass of the sharded module. Ours samples, scores and learns in
    several passes forward and back: each gathers and frees the shards it needs (`Policy.score`), and none is open between them.
    """

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        module = self.lightning_module
        assert isinstance(module, StepModule)
        assert self.model is not None
        module.policy.shard_root = (self.model,)

    def training_step(self, *args, **kwargs):
        module = self.lightning_module
        assert module is not None
        with self.precision_plugin.train_step_context():
            return module.training_step(*args, **kwargs)


def _processes(cfg: TrainerConfig) -> tuple[dict[str, Any], list[Any]]:
    """Return Lightning's arguments about processes, and its plugin for those that somebody else started."""
    # Decoder layers are the natural shard; transformers marks its classes as not to be split.
    sharding = {"auto_wrap_policy": _decoder_layers, "state_dict_type": "full"}
    if on_ray.inside():
        strategy, environment = on_ray.lightning(cfg.strategy, Sharded, **sharding)
        return {"strategy": strategy, "devices": "auto"}, [environment]
    strategy = Sharded(**sharding) if cfg.strategy == "fsdp" else cfg.strategy
    return {"strategy": strategy, "devices": cfg.devices or 1}, []


def _decoder_layers(module, recurse: bool, nonwrapped_numel: int) -> bool:
    return True if recurse else type(module).__name__.endswith("DecoderLayer")
