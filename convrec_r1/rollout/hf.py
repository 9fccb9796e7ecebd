"""Rollouts by Hugging Face `generate`, on the trainer's own weights."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from convrec_r1.policy.batch import pad_rows
from convrec_r1.policy.policy import Policy
from convrec_r1.policy.weights import whole_weights
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.lines import LineCutter


class HFEngine:
    """Samples from the policy object itself: it has no weights of its own, and `sync` copies nothing."""

    own_weights = False

    def __init__(self, policy: Policy, *, batch_size: int) -> None:
        """batch_size: sequences that are generated at a time."""
        self.policy = policy
        self.batch_size = batch_size
        self.cut = LineCutter.of(policy)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        rows = [(p, g) for p in range(len(prompts)) for g in range(sampling.n)]
        # Prompts of similar length share a batch: less padding.
        order = sorted(rows, key=lambda row: (len(prompts[row[0]]), row))
        done: dict[tuple[int, int], Completion] = {}
        with self.policy.inference(), whole_weights(self.policy):
            for start in range(0, len(order), self.batch_size):
                part = order[start : start + self.batch_size]
                ids = [prompts[p] for p, _ in part]
                done.update(zip(part, self._batch(ids, [seeds[p] + g for p, g in part], sampling), strict=True))
                if on_progress:
                    on_progress(len(part))
        return [[done[p, g] for g in range(sampling.n)] for p in range(len(prompts))]

    def sync(self, policy: Policy) -> None:
        self.policy = policy

    def close(self) -> None:
        pass

    def _batch(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        policy = self.policy
        ids, mask = (t.to(policy.device) for t in pad_rows(prompts, policy.pad_id, left=True))
        sampler = SeededSampler(seeds, sampling, policy.device)
        stops = [] if sampling.max_lines is None else [ClosedLines(sampling.max_lines, self.cut, len(seeds))]
        lm: Any = policy.causal_lm  # PreTrainedModel declares no generate()
        output = lm.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens,
                do_sample=False,  # the sampler leaves one token only, so that the argmax takes it
                eos_token_id=policy.eos_ids,
                pad_token_id=policy.pad_id,
            ),
            logits_processor=LogitsProcessorList([*_warpers(sampling), sampler]),
            stopping_criteria=StoppingCriteriaList(stops),
        )
        tokens = output[:, ids.shape[1] :].cpu()  # [b, t]
        logprobs = torch.stack(sampler.logprobs, 1).cpu()  # [b, t]
        ends = policy.eos.cpu()[tokens]
        completions = []
        for row, end, logprob in zip(tokens, ends, logprobs, strict=True):
            stopped = bool(end.any())
            length = int(end.int().argmax()) + 1 if stopped else len(row)
            completion = Completion(row[:length].numpy(), logprob[:length].numpy(), "stop" if stopped else "length")
            completions.append(self.cut(completion, sampling.max_lines))
        return completions


class ClosedLines(StoppingCriteria):
    """Stops each row once `limit` lines with text are closed."""

    def __init__(self, limit: int, cut: LineCutter, rows: int) -> None:
        self.limit = limit
        self.counters = [cut.counter() for _ in range(rows)]

    # transformers annotates tensors with legacy classes.
    def __call__(self, input_ids: Tensor, scores: Tensor, **_) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        counts = [counter.add(token) for counter, token in zip(self.counters, input_ids[:, -1].tolist(), strict=True)]
        return torch.tensor(counts, device=input_ids.device) >= self.limit


class SeededSampler(LogitsProcessor):
    """Draws one token per row from the processed scores, by inverting their CDF at the row's own random numbers.

    Each row has a generator of its own, whose numbers are drawn in advance: a row does not depend on its neighbours.
    `logprobs` collects the log-probs of the drawn tokens, one [b] tensor per step.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, device: torch.device) -> None:
        self.greedy = sampling.temperature == 0
        self.logprobs: list[Tensor] = []
        if not self.greedy:
            rows = [np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_tokens) for seed in seeds]
            self.uniform = torch.from_numpy(np.stack(rows)).to(device)  # float64 [b, max_tokens]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        logp = torch.log_softmax(scores.float(), -1)  # [b, V]
        if self.greedy:
            token = logp.argmax(-1, keepdim=True)
        else:
            # In float64: in an fp32 sum over 150,000 entries rare tokens would lose their share to their neighbours.
            cdf = logp.double().exp().cumsum(-1)
            u = self.uniform[:, len(self.logprobs), None] * cdf[:, -1:]
            token = torch.searchsorted(cdf, u, right=True).clamp(max=logp.shape[-1] - 1)  # [b, 1]
        self.logprobs.append(logp.gather(1, token)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if sampling.temperature == 0:
        return warpers
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers
