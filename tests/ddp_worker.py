"""What the processes of tests/test_ddp.py do."""

import os
import sys
from pathlib import Path

import torch
from pytorch_lightning import Callback
from test_modules import config, reinforce, warm_policy
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, OptimStateKeyType, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from convrec_r1 import cli
from convrec_r1.config import checks
from convrec_r1.modules import fit

EXACT = (
    "rl.prompts_per_step=4",
    "algo.group_size=4",
    "algo.mu=2",
    "algo.minibatches=2",
    "algo.beta=0.01",
    "rl.lr=1e-3",
    "rl.weight_decay=0.1",
    "model.max_completion_length=24",
)
"""Several passes and minibatches, so that which lists share an update matters."""
UNEVEN = ("algo.minibatches=8",)
"""More minibatches than completions of a group: whole groups are dealt out, too."""
HELD = "dapo"
"""Trained on lists that are held to the catalog."""
SHARDED = "rank_grpo"
"""Trained a step longer: with shards it is cut off after the second one."""


class OnCpus(fit.Sharded):
    """Sharding over CPUs, which torch does when it is told the device; Lightning tells it a GPU's number or nothing, and has
    what was gathered copied "to the CPU", where torch then frees what it took for the copy's original."""

    def _setup_model(self, model):
        model = FSDP(model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs)
        return super()._setup_model(model)

    def lightning_module_state_dict(self):
        with self._gathered():
            return self.model.state_dict()

    def optimizer_state(self, optimizer):
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        with self._gathered():
            state = FSDP.optim_state_dict(self.model, optimizer)
        first = self.global_rank == 0
        return FSDP.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model) if first else state

    def _gathered(self):
        weights = FullStateDictConfig(offload_to_cpu=False, rank0_only=True)
        moments = FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=True)
        return FSDP.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, weights, moments)


class Cut(Callback):
    """The end of a process after a step, before its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if module.step == self.step:
            os._exit(9)


def main(folder: str, strategy: str, algorithms: list[str], cut: int = -1) -> None:
    """Train with each algorithm. cut: the step after which the process dies."""
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    warm = warm_policy()
    more = (f"trainer={strategy}", f"trainer.devices={world}") if world > 1 else ()
    fit.Sharded = OnCpus
    for algo in algorithms:
        cut_finely = UNEVEN if algo == "grpo" else ()
        held = ("rollout.constraint=catalog", "model.max_completion_length=80") if algo == HELD else ()
        cfg = config(f"algo={algo}", f"rl.steps={3 if algo == SHARDED else 2}", *EXACT, *cut_finely, *held, *more)
        cfg.trainer.accelerator = "cpu"
        reinforce(warm, cfg, Path(folder) / algo, [Cut(cut)], rank, world)


def command_line(*overrides: str) -> None:
    """`python -m convrec_r1 OVERRIDES` with trainer=fsdp on CPUs, which the project itself refuses as of no use."""
    fit.Sharded = OnCpus
    checks.check = lambda cfg: None
    sys.argv[1:] = overrides
    cli.main()
