"""What SFT and RL share: an optimizer, and updates whose result does not hang on how the batch is cut."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from convrec_r1.base.errors import UserError
from convrec_r1.modules.config import GuardConfig, OptimConfig, Schedule
from convrec_r1.modules.faults import LOSS, Checks, Faults, MakeEvidence, bad_names, plain_name, weights_are_finite
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.run.tracker import Tracker

Sample = TypeVar("Sample")


class StepModule(pl.LightningModule):
    """A LightningModule whose `training_step` is one step of ours: its own optimizer updates, its own accumulation.

    Lightning averages losses over micro-batches and devices; that is wrong wherever these differ in tokens. Here each
    micro-batch's loss carries the denominator of the whole optimizer batch, and gradients are summed.

    A non-finite update is never applied (modules/faults.py). Where it is skipped, optimizer and weights stay as they are, and
    the schedule advances: the learning rate follows the run's steps, not the updates applied.
    """

    steps_done: Tensor
    tracker: Tracker

    def __init__(
        self, policy: Policy, optim: OptimConfig, *, updates: int, seed: int, guard: GuardConfig | None = None
    ) -> None:  # fmt: skip
        """updates: optimizer steps of the whole training, for the schedule. seed: of dropout."""
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.optim = optim
        self.updates = updates
        self.seed = seed
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
        """Our own steps, in the checkpoint with the weights."""
        self.latest: dict[str, float] = {}
        """Metrics of the last step, the same on every process."""
        self.faults = Faults(guard or GuardConfig(), policy)
        self.checks = Checks()
        """Of the current update: losses show it their inputs."""
        # Norms and biases are not decayed. Told apart here, for shards are flat, whatever they are of.
        self._decayed = {plain_name(name) for name, p in policy.named_parameters() if p.ndim >= 2}

    @property
    def step(self) -> int:
        return int(self.steps_done)

    def configure_optimizers(self):
        weights = {plain_name(name): p for name, p in self.policy.named_parameters() if p.requires_grad}
        groups = [
            {
                "params": [p for name, p in weights.items() if name in self._decayed],
                "weight_decay": self.optim.weight_decay,
            },
            {"params": [p for name, p in weights.items() if name not in self._decayed], "weight_decay": 0.0},
        ]
        beta1, beta2 = self.optim.betas
        optimizer = torch.optim.AdamW(groups, lr=self.optim.lr, betas=(beta1, beta2))
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(self.optim, self.updates))]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """A batch is conversations, not tensors; each module makes its tensors where it needs them."""
        return batch

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The policy's, for a root of shards that wraps this module."""
        return self.policy(batch)

    def on_train_start(self) -> None:
        if not weights_are_finite(self.policy.parameters()):
            names = bad_names(self.policy.named_parameters())
            raise UserError(
                f"The policy to train has non-finite weights: {', '.join(names[:8])}. Choose another checkpoint or model."
            )

    def on_train_batch_start(self, batch, batch_idx) -> None:
        """Dropout is the one thing that draws from torch's global generators. A step's draws follow from the seed and the
        step, so that a run which goes on from a checkpoint draws what it would have drawn."""
        state = np.random.SeedSequence([self.seed, self.step, self.trainer.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def update(self, losses: Sequence[Callable[[], Tensor]], evidence: MakeEvidence = None) -> float | None:
        """One optimizer step on the sum of `losses`, each computed and freed in turn. Returns the gradient norm.

        Each loss must already be divided by the denominator of the whole batch over all devices.
        evidence: builds the batch to save, called only for a non-finite update.
        Returns None where the update was skipped (guard.nonfinite=skip). UserError where training stops.
        """
        optimizer = self._optimizer()
        optimizer.zero_grad()
        checks = self.checks = self.faults.begin(self.step)
        for i, loss in enumerate(losses):
            checks.part = i
            with self._no_sync() if i < len(losses) - 1 else contextlib.nullcontext():
                # Gradients are averaged over devices; ours are to be summed.
                self.manual_backward(checks.see(LOSS, loss()) * self.trainer.world_size)
        norm = self._gradient_norm()
        # Every process must do the same, and rows of another may be the bad ones.
        if self._anywhere(not (checks.all_finite() and math.isfinite(norm))):
            self.faults.skip_or_stop(norm, sharded=self._sharded, evidence=evidence)
            optimizer.zero_grad()
            self._advance_schedule()
            return None
        self._clip(norm)
        lr = self.learning_rate()
        optimizer.step()
        self._advance_schedule()
        self.faults.in_a_row = 0
        if self._anywhere(not weights_are_finite(p for p in self.policy.parameters() if p.requires_grad)):
            self.faults.stop_after_update(norm, lr, evidence)
        return norm

    @property
    def skipped(self) -> int:
        """Updates skipped in the whole training."""
        return self.faults.skipped

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self.max_over_devices(float(here)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = (self.faults.skipped, self.faults.in_a_row)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.faults.skipped, self.faults.in_a_row = checkpoint.get("skipped", (0, 0))

    def sum_over_devices(self, value: Tensor | float) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float64 if self.device.type == "cpu" else torch.float32)
        return self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")

    def max_over_devices(self, value: Tensor | float) -> Tensor:
        value = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        return self.trainer.strategy.reduce(value, reduce_op="max") if self.trainer.world_size > 1 else value

    def learning_rate(self) -> float:
        return self._optimizer().param_groups[0]["lr"]

    def _optimizer(self):
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # `configure_optimizers` makes one
        return optimizer

    def _advance_schedule(self) -> None:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        scheduler.step()

    def _no_sync(self) -> contextlib.AbstractContextManager:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block else contextlib.nullcontext()

    @property
    def _sharded(self) -> bool:
        return hasattr(self.trainer.strategy.model, "clip_grad_norm_")

    def _gradient_norm(self) -> float:
        """The norm before clipping. Under FSDP, whose norm spans shards, gradients are clipped at once."""
        if self._sharded:
            root: Any = self.trainer.strategy.model
            return float(root.clip_grad_norm_(self.optim.grad_clip or math.inf))
        return float(nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None]))

    def _clip(self, norm: float) -> None:
        if not self._sharded:
            limit = self.optim.grad_clip or math.inf
            nn.utils.clip_grads_with_norm_(self.policy.parameters(), limit, torch.tensor(norm, device=self.device))


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


class Slots(Generic[Sample]):
    """What one process takes of a step: (slot, sample) pairs, slot counting over the whole step.

    No sequence and no dataclass: Lightning and FSDP take those apart in search of tensors, and cannot put samples together
    again, which are frozen.
    """

    def __init__(self, pairs: Sequence[tuple[int, Sample]]) -> None:
        self._pairs = tuple(pairs)

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        return iter(self._pairs)

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        return self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)


class StepLoader:
    """Which samples each step takes: a stream of seeded permutations, cut into steps of equal size.

    Step s of a seed is the same whatever came before it, so a resumed run goes on with `start`. Under several
    processes each takes its own stretch of every step. Lightning keeps `state_dict` in its checkpoints.
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

    def __iter__(self) -> Iterator[Slots]:
        for step in range(self.start, self.steps):
            self.start = step + 1
            yield self._slots(step)
        self.start = 0

    def at(self, step: int) -> Slots | None:
        """What this process takes of a step; None past the last."""
        return self._slots(step) if step < self.steps else None

    def _slots(self, step: int) -> Slots:
        share = self.per_step // self.world
        slots = range(self.rank * share, (self.rank + 1) * share)
        return Slots([(slot, self.samples[self.index(step * self.per_step + slot)]) for slot in slots])

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
