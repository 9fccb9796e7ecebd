"""What SFT and RL share: an optimizer, and updates whose result does not hang on how the batch is cut."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from convrec_r1.config.schema import OptimConfig, Schedule
from convrec_r1.policy import Policy


class StepModule(pl.LightningModule):
    """A LightningModule whose `training_step` is one step of ours: its own optimizer updates, its own accumulation.

    Lightning averages losses over micro-batches and devices; that is wrong wherever these differ in tokens. Here each
    micro-batch's loss carries the denominator of the whole optimizer batch, and gradients are summed.
    """

    def __init__(self, policy: Policy, optim: OptimConfig, *, updates: int) -> None:
        """updates: optimizer steps of the whole training, for the schedule."""
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.optim = optim
        self.updates = updates
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
        """Our own steps, in the checkpoint with the weights."""
        self.latest: dict[str, float] = {}
        """Metrics of the last step, the same on every process."""

    @property
    def step(self) -> int:
        return int(self.steps_done)

    def configure_optimizers(self):
        weights = [p for p in self.policy.parameters() if p.requires_grad]
        groups = [  # norms and biases are not decayed
            {"params": [p for p in weights if p.ndim >= 2], "weight_decay": self.optim.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.optim.lr, betas=tuple(self.optim.betas))
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(self.optim, self.updates))]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """A batch is conversations, not tensors; each module makes its tensors where it needs them."""
        return batch

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One optimizer step on the sum of `losses`, each computed and freed in turn. Returns the gradient norm.

        Each loss must already be divided by the denominator of the whole batch over all devices.
        """
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for i, loss in enumerate(losses):
            with self._no_sync() if i < len(losses) - 1 else contextlib.nullcontext():
                # Gradients are averaged over devices; ours are to be summed.
                self.manual_backward(loss() * self.trainer.world_size)
        norm = self._clip()
        optimizer.step()
        self.lr_schedulers().step()
        return norm

    def sum_over_devices(self, value: Tensor | float) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")

    def max_over_devices(self, value: Tensor | float) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        return self.trainer.strategy.reduce(value, reduce_op="max") if self.trainer.world_size > 1 else value

    def learning_rate(self) -> float:
        return self.optimizers().param_groups[0]["lr"]

    def _no_sync(self) -> contextlib.AbstractContextManager:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block else contextlib.nullcontext()

    def _clip(self) -> float:
        limit = self.optim.grad_clip or math.inf
        wrapped = self.trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # FSDP: the norm spans shards
            return float(wrapped.clip_grad_norm_(limit))
        return float(nn.utils.clip_grad_norm_(self.policy.parameters(), limit))


def schedule(optim: OptimConfig, updates: int) -> Callable[[int], float]:
    """Factor on the learning rate at each optimizer step: linear warm-up, then constant, linear or cosine to zero."""
    warmup = round(optim.warmup * updates)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, updates - warmup)
        if optim.schedule is Schedule.linear:
            return max(0.0, 1 - done)
        if optim.schedule is Schedule.cosine:
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor


class StepLoader:
    """Which samples each step takes: a stream of seeded permutations, cut into steps of equal size.

    Step s of a seed is the same whatever came before it, so a resumed run goes on with `start`. Under several
    processes each takes its own stretch of every step. Yields lists of (slot, sample), slot counting over the whole
    step; Lightning keeps `state_dict` in its checkpoints.
    """

    def __init__(
        self, samples: Sequence, per_step: int, steps: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        if not samples:
            raise ValueError("no samples to draw from")
        if per_step % world:
            raise ValueError(f"{per_step} samples a step do not divide among {world} processes")
        self.samples, self.per_step, self.steps, self.seed = samples, per_step, steps, seed
        self.rank, self.world = rank, world
        self.start = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, object]]]:
        for step in range(self.start, self.steps):
            self.start = step + 1
            yield self.at(step)
        self.start = 0

    def at(self, step: int) -> list[tuple[int, object]] | None:
        """What this process takes of a step; None past the last."""
        if step >= self.steps:
            return None
        share = self.per_step // self.world
        slots = range(self.rank * share, (self.rank + 1) * share)
        return [(slot, self.samples[self.index(step * self.per_step + slot)]) for slot in slots]

    def index(self, position: int) -> int:
        """The sample at a position of the endless stream."""
        epoch, offset = divmod(position, len(self.samples))
        return int(self._permutation(epoch)[offset])

    def state_dict(self) -> dict[str, int]:
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["start"]

    def _permutation(self, epoch: int) -> np.ndarray:
        if getattr(self, "_cached", (None,))[0] != epoch:
            self._cached = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.samples)))
        return self._cached[1]
