"""What SFT and RL share: an optimizer, and updates whose result does not hang on how the batch is cut."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from convrec_r1.base.errors import UserError
from convrec_r1.modules.config import GuardConfig, NonFinite, OptimConfig, Schedule
from convrec_r1.modules.finite import (
    GRADIENT,
    LOSS,
    Checks,
    Evidence,
    Fault,
    bad_names,
    describe,
    plain_name,
    replay_command,
    save_fault,
    weights_are_finite,
)
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.run.tracker import Tracker

_log = logging.getLogger(__name__)

Sample = TypeVar("Sample")


class StepModule(pl.LightningModule):
    """A LightningModule whose `training_step` is one step of ours: its own optimizer updates, its own accumulation.

    Lightning averages losses over micro-batches and devices; that is wrong wherever these differ in tokens. Here each
    micro-batch's loss carries the denominator of the whole optimizer batch, and gradients are summed.

    An update that anything in is not finite is never made. `guard.nonfinite` says whether training stops there or leaves it
    out: optimizer and weights then stay as they are, and the schedule goes on, as the learning rate follows the run's steps
    and not those that came off. Weights that are not finite stop it either way, for no later update would mend them.
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
        self.guard = guard or GuardConfig()
        self.checks = Checks()
        """Of the update under way: losses show it what they are computed from."""
        self.faults: Path | None = None
        """Where batches go that something in is not finite; None: nowhere."""
        self.skipped = 0
        """Updates that were left out, in the whole training."""
        self._skipped_in_a_row = 0
        self._updates_tried = (-1, 0)  # step, updates of it so far
        self._last_saved = -1
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
                f"The policy that training would start from has weights that are not finite: {', '.join(names[:8])}. Choose "
                "another checkpoint or model."
            )

    def on_train_batch_start(self, batch, batch_idx) -> None:
        """Dropout is the one thing that draws from torch's global generators. A step's draws follow from the seed and the
        step, so that a run which goes on from a checkpoint draws what it would have drawn."""
        state = np.random.SeedSequence([self.seed, self.step, self.trainer.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def update(
        self, losses: Sequence[Callable[[], Tensor]], evidence: Callable[[Checks], Evidence] | None = None
    ) -> float | None:
        """One optimizer step on the sum of `losses`, each computed and freed in turn. Returns the gradient norm.

        Each loss must already be divided by the denominator of the whole batch over all devices.
        evidence: what the losses were computed from, asked for only where something is not finite.
        Returns None where the update was left out for that (guard.nonfinite=skip); UserError where training stops.
        """
        optimizer = self._optimizer()
        optimizer.zero_grad()
        checks = self.checks = Checks()
        for i, loss in enumerate(losses):
            checks.part = i
            with self._no_sync() if i < len(losses) - 1 else contextlib.nullcontext():
                # Gradients are averaged over devices; ours are to be summed.
                self.manual_backward(checks.see(LOSS, loss()) * self.trainer.world_size)
        norm = self._gradient_norm()
        number = self._updates_tried[1] + 1 if self._updates_tried[0] == self.step else 1
        self._updates_tried = (self.step, number)
        # Every process must do the same, and rows of another may be the bad ones.
        if self._anywhere(not (checks.all_finite() and math.isfinite(norm))):
            self._leave_out(number, checks, norm, evidence)
            return None
        self._clip(norm)
        optimizer.step()
        self._advance_schedule()
        self._skipped_in_a_row = 0
        if self._anywhere(not weights_are_finite(p for p in self.policy.parameters() if p.requires_grad)):
            what = [
                f"weight {name} (after this update, with a gradient of norm {norm:.3g})" for name in self._bad_weights()
            ]
            fault, folder = self._record(number, checks, what, evidence)
            raise UserError(
                f"{fault}. The optimizer made them so: lower the learning rate ({self.learning_rate():g} now) or grad_clip, "
                f"and go back to a checkpoint from before. {self._where(folder)}"
            )
        return norm

    def _leave_out(
        self, number: int, checks: Checks, norm: float, evidence: Callable[[Checks], Evidence] | None
    ) -> None:
        """Leave an update out that something in is not finite, or raise the UserError that ends training."""
        weights = [f"weight {name}" for name in self._bad_weights()]
        gradients = [] if math.isfinite(norm) else self._bad_gradients()
        self._optimizer().zero_grad()
        fault, folder = self._record(number, checks, weights + checks.found() + gradients, evidence)
        self._skipped_in_a_row += 1
        patience = self.guard.nonfinite_patience
        if self._anywhere(bool(weights)):
            reason = "Weights that are not finite cannot be skipped: go back to a checkpoint from before."
        elif self.guard.nonfinite is NonFinite.stop:
            reason = (
                "The update was not made, the weights are as before it. guard.nonfinite=skip leaves such updates out."
            )
        elif self._skipped_in_a_row > patience:
            reason = f"{patience} updates in a row had been left out already (guard.nonfinite_patience={patience})."
        else:
            self.skipped += 1
            self._advance_schedule()
            _log.warning("%s. The update is left out (guard.nonfinite=skip). %s", fault, self._where(folder))
            return
        raise UserError(f"{fault}. {reason} {self._where(folder)}")

    def _record(
        self, number: int, checks: Checks, what: Sequence[str], evidence: Callable[[Checks], Evidence] | None
    ) -> tuple[Fault, Path | None]:
        """What was found, and where it was saved: the first fault of a step is."""
        seen = evidence(checks) if evidence else Evidence({}, {}, [], [], [])
        fault = describe(self.step + 1, number, what, seen)
        if self.faults is None or evidence is None:
            return fault, None
        folder = self.faults / f"step-{fault.step:06d}"
        if self._last_saved != fault.step:
            self._last_saved = fault.step
            facts = {
                "temperature": self.policy.temperature,
                "precision": self.trainer.precision,
                "dtype": str(next(self.policy.parameters()).dtype).removeprefix("torch."),
            }
            save_fault(self.faults, fault, seen, self.policy, facts)
        return fault, folder

    @staticmethod
    def _where(folder: Path | None) -> str:
        return (
            f"\nThe batch and the weights are in {folder}; to look closer: {replay_command(folder)}" if folder else ""
        )

    def _bad_weights(self) -> list[str]:
        return bad_names(self.policy.named_parameters())

    def _bad_gradients(self) -> list[str]:
        if self._sharded:  # its clipping has spread them
            return [GRADIENT]
        names = bad_names((name, p.grad) for name, p in self.policy.named_parameters())
        return [f"{GRADIENT} of {name}" for name in names] or [f"{GRADIENT}'s norm, each gradient being finite"]

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self.max_over_devices(float(here)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = (self.skipped, self._skipped_in_a_row)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped, self._skipped_in_a_row = checkpoint.get("skipped", (0, 0))

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
