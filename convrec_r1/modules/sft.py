"""Supervised fine-tuning (SFT): imitate demonstrations."""

import time
from dataclasses import dataclass

import torch

from convrec_r1.modules.config import GuardConfig, SFTConfig
from convrec_r1.modules.faults import Checks, Evidence
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
        micro_batch: int,
        tracker: Tracker,
        seed: int = 0,
        guard: GuardConfig | None = None,
    ) -> None:
        """
        Args:
            policy: trained in place.
            cfg: optimizer and schedule.
            steps: optimizer steps of the whole training.
            micro_batch: sequences in one forward and backward pass. The result does not depend on it.
            tracker: receives the metrics.
            seed: seed of dropout.
            guard: what to do about NaN and Inf (`nonfinite`).
        """
        super().__init__(policy, cfg, updates=steps, seed=seed, guard=guard)
        self.micro_batch = micro_batch
        self.tracker = tracker

    def training_step(self, batch: Slots[Example], _: int) -> None:
        started = time.perf_counter()
        slots = sorted(batch, key=lambda s: len(s[1].prompt) + len(s[1].completion))
        examples = [example for _, example in slots]
        padded = collate(examples, self.policy).to(self.device)
        tokens = self.sum_over_devices(padded.mask.sum()).to(torch.float32)
        parts = torch.arange(len(examples), device=self.device).split(self.micro_batch)
        total = torch.zeros((), device=self.device)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            nonlocal total
            logps, _ = self.policy.score(padded.rows(rows))
            loss = -self.checks.see("the log-probs", logps).sum() / tokens
            total += loss.detach()
            return loss

        def evidence(checks: Checks) -> Evidence:
            tensors = {**vars(padded), "parts": torch.arange(len(examples)) // self.micro_batch}
            conversations = [e.id for e in examples]
            return Evidence(tensors, float(tokens), checks.rows(parts), [slot for slot, _ in slots], conversations)

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
def mean_loss(policy: Policy, examples: list[Example], micro_batch: int) -> float:
    """Return the mean cross-entropy per token over `examples`. It does not depend on `micro_batch`."""
    total, tokens = 0.0, 0
    with policy.inference():
        for start in range(0, len(examples), micro_batch):
            batch = collate(examples[start : start + micro_batch], policy).to(policy.device)
            total -= float(policy(batch)[0].double().sum())
            tokens += int(batch.mask.sum())
    return total / max(1, tokens)
