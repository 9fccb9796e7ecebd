"""Supervised fine-tuning (SFT): imitate demonstrations."""

import time
from dataclasses import dataclass

import torch

from convrec_r1.modules.config import GuardConfig, PassLimit, SFTConfig
from convrec_r1.modules.faults import Checks, Evidence, evidence_of
from convrec_r1.modules.microbatches import micro_batches
from convrec_r1.modules.step import Slots, StepModule
from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.run.tracker import Tracker


@dataclass(frozen=True)
class Example:
    """A prompt and its demonstration as token ids."""

    prompt: list[int]
    completion: list[int]
    id: str = ""
    """Id of the conversation."""


class SFTModule(StepModule):
    """Training module of SFT: mean cross-entropy over the demonstration tokens of an optimizer batch."""

    def __init__(
        self,
        policy: Policy,
        cfg: SFTConfig,
        *,
        steps: int,
        pass_limit: PassLimit,
        tracker: Tracker,
        seed: int = 0,
        guard: GuardConfig | None = None,
    ) -> None:
        """
        Args:
            policy: trained in place.
            cfg: optimizer and schedule.
            steps: optimizer steps of the whole training.
            pass_limit: of a forward and backward pass. The result does not depend on it.
            tracker: receives the metrics.
            seed: seed of dropout.
            guard: what to do about NaN and Inf (`nonfinite`).
        """
        super().__init__(policy, cfg, updates=steps, seed=seed, guard=guard)
        self.pass_limit = pass_limit
        self.tracker = tracker

    def training_step(self, batch: Slots[Example], _: int) -> None:
        started = time.perf_counter()
        slots = list(batch)
        examples = [example for _, example in slots]
        padded = collate(examples, self.policy).to(self.device)
        tokens = self.sum_over_devices(padded.mask.sum()).to(torch.float32)
        parts = self.passes(padded, torch.arange(len(examples), device=self.device), self.pass_limit)
        total = torch.zeros((), device=self.device)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            nonlocal total
            logps, _ = self.policy.score(padded.rows(rows))
            loss = -self.checks.see("the log-probs", logps).sum() / tokens
            total += loss.detach()
            return loss

        def evidence(checks: Checks) -> Evidence:
            return evidence_of(padded, {}, parts, checks, float(tokens), [(slot, e.id) for slot, e in slots])

        lr = self.learning_rate()
        norm = self.update([lambda rows=rows: loss_of(rows) for rows in parts], evidence)
        self.steps_done += 1
        took = time.perf_counter() - started
        values = {
            "sft/lr": lr,
            "sft/tokens_per_second": float(tokens) / took,
            "sft/skipped_updates": float(norm is None),
        }
        if norm is not None:
            values |= {"sft/loss": float(self.sum_over_devices(total)), "sft/grad_norm": norm}
            self.progress = f"loss {values['sft/loss']:.3f}"
        self.tracker.log(self.step, "sft", values)


def collate(examples: list[Example], policy: Policy) -> TokenBatch:
    """Return the padded batch of some examples."""
    return TokenBatch.collate([e.prompt for e in examples], [e.completion for e in examples], policy.pad_id)


@torch.no_grad()
def mean_loss(policy: Policy, examples: list[Example], limit: PassLimit) -> float:
    """Return the mean cross-entropy per token over `examples`. It does not depend on `limit`, that of a pass."""
    if not examples:
        return 0.0
    batch = collate(examples, policy).to(policy.device)
    total = 0.0
    with policy.inference():
        for rows in micro_batches(batch, torch.arange(len(examples), device=policy.device), limit, packs=policy.packs):
            total -= float(policy(batch.rows(rows))[0].double().sum())
    return total / max(1, int(batch.mask.sum()))
