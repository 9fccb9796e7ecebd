"""Run a module under a Lightning Trainer, from where its folder says it was left."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy

from convrec_r1.config.schema import TrainerConfig
from convrec_r1.modules.callbacks import Checkpoints, Marks, ProgressBar
from convrec_r1.modules.step import StepLoader, StepModule

_log = logging.getLogger(__name__)


def make_trainer(cfg: TrainerConfig, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        num_nodes=cfg.nodes,
        strategy=_strategy(cfg.strategy),
        precision=cfg.precision,
        max_epochs=1,  # the loader knows the number of steps
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
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
    marks: Marks | None = None,
) -> None:
    """Train `module` for the loader's steps, going on from checkpoints/last if there is one."""
    total = len(loader)
    module.faults = checkpoints.parent / "faults"
    watchers = [
        *callbacks,
        Checkpoints(
            checkpoints, every=cfg.checkpoint_every, total=total, keep=cfg.keep_checkpoints, marks=marks or Marks()
        ),
        ProgressBar(description, total),
    ]
    last = checkpoints / "last" / "trainer.ckpt"
    trainer = make_trainer(cfg, watchers)
    if last.exists():
        _log.info("Going on from %s", last.parent.resolve())
    trainer.fit(module, train_dataloaders=loader, ckpt_path=str(last) if last.exists() else None, weights_only=True)


def device_for(cfg: TrainerConfig) -> torch.device:
    """Where policies stand that are evaluated outside a Trainer."""
    if cfg.accelerator in ("gpu", "auto") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def _strategy(name: str):
    if name == "fsdp":
        # Decoder layers are the natural shard; transformers marks its classes as not to be split.
        return FSDPStrategy(auto_wrap_policy=_decoder_layers, state_dict_type="full")
    return name


def _decoder_layers(module, recurse: bool, nonwrapped_numel: int) -> bool:
    return True if recurse else type(module).__name__.endswith("DecoderLayer")
