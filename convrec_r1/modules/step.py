"""The base module of SFT and RL: optimizer updates whose result does not depend on micro-batches and devices."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from convrec_r1.base.errors import UserError
from convrec_r1.base.memory import release
from convrec_r1.modules.config import GuardConfig, OptimConfig, Optimizer, PassLimit, Schedule
from convrec_r1.modules.faults import LOSS, Checks, Faults, MakeEvidence, bad_names, plain_name, weights_are_finite
from convrec_r1.modules.microbatches import micro_batches
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.run.tracker import Tracker

Sample = TypeVar("Sample")

LARGE = 256 << 20
"""Bytes of weights above which freed memory goes back to the system in each update. For small models that takes longer than it
saves."""


class StepModule(pl.LightningModule):
    """A LightningModule whose `training_step` makes its own optimizer updates.

    Lightning averages losses over micro-batches and devices, which is wrong if these differ in tokens. Here the loss of each
    micro-batch has the denominator of the whole optimizer batch, and gradients are summed.

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
        """Steps so far. A buffer, so that checkpoints have it."""
        self.latest: dict[str, float] = {}
        """Metrics of the last step, the same on every process."""
        self.faults = Faults(guard or GuardConfig(), policy)
        self._large = sum(p.nbytes for p in policy.parameters()) > LARGE
        self.checks = Checks()
        """Of the current update. Losses report their inputs to it."""
        # Norms and biases are not decayed. They are found here because shards have one dimension.
        self._decayed = {plain_name(name) for name, p in policy.named_parameters() if p.ndim >= 2}

    @property
    def step(self) -> int:
        return int(self.steps_done)

    def configure_optimizers(self):
        weights = {plain_name(name): p for name, p in self.policy.named_parameters() if p.requires_grad}
        decayed = [p for name, p in weights.items() if name in self._decayed]
        others = [p for name, p in weights.items() if name not in self._decayed]
        groups = [{"params": decayed, "weight_decay": self.optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
        beta1, beta2 = self.optim.betas
        kind = optimizer_class(self.optim.optimizer, self.device)
        optimizer = kind(groups, lr=self.optim.lr, betas=(beta1, beta2))
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(self.optim, self.updates))]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """Return the batch: it holds no tensors."""
        return batch

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Run the policy, for FSDP, which wraps this module."""
        return self.policy(batch)

    def on_train_start(self) -> None:
        if not weights_are_finite(self.policy.parameters()):
            names = bad_names(self.policy.named_parameters())
            raise UserError(
                f"The policy to train has non-finite weights: {', '.join(names[:8])}. Choose another checkpoint or model."
            )

    def on_train_batch_start(self, batch, batch_idx) -> None:
        """Seed torch's global generators, which only dropout uses, by the step: a resumed run draws the same numbers."""
        state = np.random.SeedSequence([self.seed, self.step, self.trainer.global_rank]).generate_state(1, np.uint64)
        seed_torch(int(state[0]))

    def update(self, losses: Sequence[Callable[[], Tensor]], evidence: MakeEvidence = None) -> float | None:
        """Make an optimizer step on the sum of `losses`, each computed and freed in turn.

        Args:
            losses: each divided by the denominator of the whole batch over all devices.
            evidence: builds the batch to save, called only for a non-finite update.
        Returns:
            The gradient norm. None if the update was skipped (guard.nonfinite=skip).
        Raises:
            UserError: a non-finite update stops training.
        """
        optimizer = self._optimizer()
        optimizer.zero_grad()
        checks = self.checks = self.faults.begin(self.step)
        for i, loss in enumerate(losses):
            checks.part = i
            with self._no_sync() if i < len(losses) - 1 else contextlib.nullcontext():
                # DDP and FSDP average gradients over devices. The factor makes them sums.
                self.manual_backward(checks.see(LOSS, loss()) * self.trainer.world_size)
        norm = self._gradient_norm()
        # Every process must do the same, even if only another one has non-finite rows.
        if self._anywhere(not (checks.all_finite() and math.isfinite(norm))):
            self.faults.skip_or_stop(norm, sharded=self._sharded, evidence=evidence)
            optimizer.zero_grad()
            self._advance_schedule()
            return None
        self._clip(norm)
        lr = self.learning_rate()
        if self._large and self.device.type == "cpu":
            release()  # what activations took, before AdamW takes as much for its intermediate results
        optimizer.step()
        optimizer.zero_grad()  # no memory for them until the next backward pass
        self._advance_schedule()
        self.faults.in_a_row = 0
        if self._anywhere(not weights_are_finite(p for p in self.policy.parameters() if p.requires_grad)):
            self.faults.stop_after_update(norm, lr, evidence)
        return norm

    def passes(self, batch: TokenBatch, rows: Tensor, limit: PassLimit) -> list[Tensor]:
        """Return the rows of each forward and backward pass over some completions: see `micro_batches`."""
        parts = micro_batches(batch, rows, limit, packs=self.policy.packs)
        if not self._sharded:
            return parts
        # Shards are gathered in every pass, so that every process must make as many as the others.
        count = int(self.max_over_devices(len(parts)))
        return micro_batches(batch, rows, limit, packs=self.policy.packs, count=count)

    @property
    def skipped(self) -> int:
        """Updates skipped in the whole training."""
        return self.faults.skipped

    def _anywhere(self, here: bool) -> bool:
        """Return whether it holds on any process."""
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
        """Return the norm before clipping. FSDP computes it over the shards, and clips at the same time."""
        if self._sharded:
            root: Any = self.trainer.strategy.model
            return float(root.clip_grad_norm_(self.optim.grad_clip or math.inf))
        return float(nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None]))

    def _clip(self, norm: float) -> None:
        if not self._sharded:
            limit = self.optim.grad_clip or math.inf
            nn.utils.clip_grads_with_norm_(self.policy.parameters(), limit, torch.tensor(norm, device=self.device))


def optimizer_class(choice: Optimizer, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of an optimizer for weights on `device`.

    Raises:
        UserError: adamw_8bit without a GPU or without bitsandbytes.
    """
    if choice is Optimizer.adamw:
        return torch.optim.AdamW
    if device.type != "cuda":
        raise UserError(
            "The optimizer adamw_8bit needs a GPU. Set rl.optimizer and sft.optimizer to adamw, or use trainer=gpu."
        )
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise UserError(
            f"The optimizer adamw_8bit needs bitsandbytes, which cannot be imported ({error}). Install it with "
            "`pip install 'convrec-r1[bitsandbytes]'`, or use the optimizer adamw."
        ) from error
    return AdamW8bit


def seed_torch(seed: int) -> None:
    """Seed torch's global generators as `torch.manual_seed` does, but those of GPUs only where one is in use.

    Without a GPU in use, torch.manual_seed formats a stack trace for a later start of CUDA: a millisecond a step.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def schedule(optim: OptimConfig, updates: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by optimizer step: linear warm-up, then constant, linear or cosine to zero."""
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
    """The samples of one process in a step: (slot, sample) pairs. Slots count over the whole step.

    Not a sequence or dataclass: Lightning and FSDP would look for tensors in it and rebuild it, but samples are frozen.
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
    """The samples of each step: a stream of seeded permutations, cut into steps of equal size.

    Steps follow from the seed and from the number of samples that were drawn in addition (`more`), so a resumed run continues
    at `start` and `drawn`. Each of several processes takes its own part of every step. Lightning saves `state_dict` in its
    checkpoints.
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
        self.drawn = 0
        """Samples of the stream that were drawn so far, on all processes."""
        self.claimed: list[int] = []
        """First place in the stream of each coming step whose samples `upcoming` has drawn."""
        self._permutation: tuple[int, np.ndarray] = (-1, np.empty(0))
        """Epoch and permutation that were used last."""

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Slots]:
        for step in range(self.start, self.steps):
            self.start = step + 1
            slots = range(self.per_step)
            yield self._slots(slots, self.claimed.pop(0)) if self.claimed else self.more(slots)
        self.start = self.drawn = 0

    def upcoming(self, steps: int) -> list[tuple[int, Slots]]:
        """Draw the samples of the next `steps` steps, as far as there are so many. Return each step's number and samples."""
        while len(self.claimed) < min(steps, self.steps - self.start):
            self.claimed.append(self.drawn)
            self.drawn += self.per_step
        slots = range(self.per_step)
        return [(self.start + i, self._slots(slots, first)) for i, first in enumerate(self.claimed[:steps])]

    def more(self, slots: Sequence[int]) -> Slots:
        """Draw the next samples for some slots of a step.

        Args:
            slots: of all processes, sorted; the same on every process.
        Returns:
            The samples for those of this process.
        """
        taken = self._slots(slots, self.drawn)
        self.drawn += len(slots)
        return taken

    def _slots(self, slots: Sequence[int], first: int) -> Slots:
        """Return those of this process among the slots that take the stream's samples from place `first`."""
        share = self.per_step // self.world
        own = range(self.rank * share, (self.rank + 1) * share)
        places = [(place, slot) for place, slot in enumerate(slots, first) if slot in own]
        return Slots([(slot, self.samples[self.index(place)]) for place, slot in places])

    def index(self, position: int) -> int:
        """Return the index of the sample at a position of the endless stream."""
        epoch, offset = divmod(position, len(self.samples))
        if self._permutation[0] != epoch:
            self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return int(self._permutation[1][offset])

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "drawn": self.drawn, "claimed": list(self.claimed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["start"]
        self.claimed = list(state.get("claimed", []))
        self.drawn = state.get("drawn", self.start * self.per_step)  # absent: written before samples were replaced
