"""Rollouts on the trainer's own weights: each prompt is read once and decoded into its G lists."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from convrec_r1.policy.attention import Unsupported, take_layouts
from convrec_r1.policy.batch import pad_rows
from convrec_r1.policy.policy import Policy
from convrec_r1.policy.skeleton import load_weights
from convrec_r1.policy.weights import stream_weights, whole_weights
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.checksums import Named, WeightSums
from convrec_r1.rollout.constraint import Constraint, HeldLists, Opening
from convrec_r1.rollout.decoding import PREFILL_TOKENS, Decoded, bytes_of_a_token, decode
from convrec_r1.rollout.lines import LineCounters
from convrec_r1.rollout.sampler import SeededSampler

_log = logging.getLogger(__name__)
_CACHE_BYTES = 4 << 30
"""Keys and values of a batch of several prompts, at most. A constant: a batch that depended on free memory would round
differently in every run."""

Row = tuple[int, int]
"""Index of the prompt, and of the completion in its group."""


class BatchSize(NamedTuple):
    """What decides the memory of a batch."""

    rows: int
    """Completions."""
    prompts: int
    """Prompts that are read and kept: one for each completion where the model cannot share them."""
    prefill: int
    """Tokens in the largest forward pass over prompts."""
    token_bytes: int | None
    """Of a token's keys and values. None: not known, because transformers keeps them."""


class HFEngine:
    """Samples from the policy object itself: it has no weights of its own, and `sync` copies nothing."""

    own_weights = False
    constrains = True

    def __init__(self, policy: Policy, *, batch_size: int, constraint: Constraint | None = None) -> None:
        """
        Args:
            batch_size: sequences that are generated at a time. Groups stay together unless they are larger.
            constraint: that `openings` refer to.
        """
        self.policy, self.constraint = policy, constraint
        self.batch_size = batch_size
        self._checked: PreTrainedModel | None = None
        self._bytes: int | None = None
        """Of a token's keys and values. None: the checked model takes no layouts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
        openings: Sequence[Opening] | None = None,
    ) -> list[list[Completion]]:
        done: dict[Row, Completion] = {}
        with self.policy.inference(), whole_weights(self.policy):
            self._check()
            for part in self._batches([len(p) for p in prompts], sampling):
                done.update(zip(part, self._batch(prompts, seeds, part, sampling, on_progress, openings), strict=True))
        return [[done[p, g] for g in range(sampling.n)] for p in range(len(prompts))]

    def sync(self, policy: Policy) -> None:
        self.policy = policy

    def load(self, weights: Iterable[Named]) -> None:
        """Sample from these weights from now on, as a rollout worker. The policy is a skeleton."""
        load_weights(self.policy, weights)

    def weight_sums(self) -> Iterable[dict[str, int]]:
        """Return sums of the bits of the weights (`WeightSums.by_layer`)."""
        sums = WeightSums()
        for name, weight in stream_weights(self.policy):
            sums.add(name, weight)
        return [sums.by_layer()]

    def close(self) -> None:
        pass

    @property
    def shares(self) -> bool:
        """Whether prompts are read once for all their completions. Known after the first `generate`."""
        return self._bytes is not None

    def largest_batch(self, prompts: int, length: int, sampling: Sampling) -> BatchSize:
        """Return the size of the largest batch of so many prompts of `length` tokens. Known after the first `generate`."""
        part = max(self._batches([length] * prompts, sampling), key=len)
        if self._bytes is None:
            return BatchSize(len(part), len(part), len(part) * length, None)
        chosen = len({p for p, _ in part})
        return BatchSize(len(part), chosen, min(chosen, max(1, PREFILL_TOKENS // length)) * length, self._bytes)

    def _check(self) -> None:
        """Find out whether the model can be decoded with shared prompts. Once for each model, with its real weights."""
        lm = self.policy.causal_lm
        if self._checked is lm:
            return
        self._checked, self._bytes = lm, None
        if take_layouts(lm):
            try:
                self._bytes = bytes_of_a_token(self.policy)
            except (Unsupported, TypeError, ValueError, AttributeError) as error:
                _log.debug("%s takes no layouts: %s", type(lm).__name__, error)
        if self._bytes is None:
            _say_once(type(lm).__name__)

    def _batches(self, lengths: Sequence[int], sampling: Sampling) -> Iterator[list[Row]]:
        """Yield the rows of each batch. Prompts of similar length share a batch: less padding."""
        part: list[Row] = []
        token = self._bytes or 0
        for p in sorted(range(len(lengths)), key=lambda p: (lengths[p], p)):
            rows = len(part) + sampling.n
            # The longest prompt so far is this one.
            cache = token * (lengths[p] * -(-rows // sampling.n) + rows * sampling.max_tokens)
            if part and (rows > self.batch_size or cache > _CACHE_BYTES):
                yield part
                part = []
            part += [(p, g) for g in range(sampling.n)]
            while len(part) > self.batch_size:
                yield part[: self.batch_size]
                part = part[self.batch_size :]
        if part:
            yield part

    def _batch(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], part: Sequence[Row], sampling: Sampling,
        on_progress: Callable[[int], None] | None, openings: Sequence[Opening] | None,
    ) -> list[Completion]:  # fmt: skip
        chosen = list(dict.fromkeys(p for p, _ in part))
        places = {p: place for place, p in enumerate(chosen)}
        owners = [places[p] for p, _ in part]
        texts = [prompts[p] for p in chosen]

        def sampler() -> SeededSampler:
            return SeededSampler([seeds[p] + g for p, g in part], sampling, self.policy.device)

        def held() -> HeldLists | None:
            if openings is None:
                return None
            if self.constraint is None:
                raise ValueError("openings need an engine that was built with a constraint")
            return HeldLists(self.constraint, [openings[p] for p, _ in part], self.policy.device)

        decoded = None
        if self._bytes is not None:
            try:
                decoded = decode(
                    self.policy, texts, owners, sampler(), sampling.max_tokens, sampling.max_lines, on_progress, held()
                )
            except Unsupported:  # before the first token: prompt and completion may be longer than a sliding window
                _say_once(f"{type(self.policy.causal_lm).__name__} at this length")
        if decoded is None:
            decoded = _generate(self.policy, [texts[p] for p in owners], sampler(), sampling, held())
            if on_progress:
                on_progress(len(part))
        return [
            Completion(ids[:length].numpy(), logprobs[:length].numpy(), "stop" if ended else "length")
            for ids, logprobs, length, ended in zip(
                decoded.ids, decoded.logprobs, decoded.lengths.tolist(), decoded.ended.tolist(), strict=True
            )
        ]


@functools.cache  # a run has several engines
def _say_once(model: str) -> None:
    _log.warning(
        "rollout=hf: %s has attention of its own kind, so prompts are not shared among their lists, and transformers' generate "
        "samples. It is slower; the results are the same.",
        model,
    )


def _generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampler: SeededSampler,
    sampling: Sampling,
    held: HeldLists | None = None,
) -> Decoded:
    """Sample by transformers' `generate`, with a prompt for each completion."""
    ids, mask = (t.to(policy.device) for t in pad_rows(prompts, policy.pad_id, left=True))
    step = _Step(policy, sampler, sampling, len(prompts), held)
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
        logits_processor=LogitsProcessorList([step.draw]),
        stopping_criteria=StoppingCriteriaList([step.stop]),
        synced_gpus=False,  # weights are whole (`whole_weights`): no process waits for another
    )
    tokens, logprobs = output[:, ids.shape[1] :], torch.stack(step.logprobs, 1)  # [b, t]
    return Decoded(tokens.cpu(), logprobs.cpu(), step.lengths.cpu(), step.ended.cpu())


class _Step:
    """What `generate` calls after each forward pass, and after each token."""

    def __init__(
        self, policy: Policy, sampler: SeededSampler, sampling: Sampling, rows: int, held: HeldLists | None
    ) -> None:
        self.policy, self.sampler, self.limit, self.held = policy, sampler, sampling.max_lines, held
        self.lines = LineCounters(policy, rows)
        self.logprobs: list[Tensor] = []
        self.lengths = torch.full((rows,), sampling.max_tokens, device=policy.device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=policy.device)
        step = self

        class Draw(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
                choices = step.held.choices() if step.held else None
                token, logprob = step.sampler.draw(scores, len(step.logprobs), choices)
                if step.held:
                    step.held.advance(token)
                step.logprobs.append(logprob)
                return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

        class Stop(StoppingCriteria):
            # transformers annotates tensors with legacy classes.
            def __call__(self, input_ids: Tensor, scores: Tensor, **_) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
                return step.after(input_ids[:, -1])

        self.draw, self.stop = Draw(), Stop()

    def after(self, tokens: Tensor) -> Tensor:
        """Take in the next token of each row. Return which rows have ended, BoolTensor [b]."""
        over = self.policy.eos[tokens]
        if self.limit is not None:
            over = over | (self.lines.add(tokens) >= self.limit)
        self.lengths = torch.where(over & ~self.ended, len(self.logprobs), self.lengths)
        self.ended = self.ended | over
        return self.ended
