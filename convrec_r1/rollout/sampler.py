"""Draw tokens from logits: one per row, each row with random numbers of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.constraint import Choices

_BLOCK = 256
_SMALL = 8 * _BLOCK
"""Vocabularies up to this size are searched as a whole."""


class SeededSampler:
    """Inverts each row's CDF at the row's own random numbers. A row does not depend on its neighbours."""

    def __init__(self, seeds: Sequence[int], sampling: Sampling, device: torch.device) -> None:
        """seeds: of B rows. The numbers of `sampling.max_tokens` tokens are drawn in advance."""
        self.greedy = sampling.temperature == 0
        self.warpers = _warpers(sampling)
        if not self.greedy:
            rows = [np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_tokens) for seed in seeds]
            self.uniform = torch.from_numpy(np.stack(rows)).to(device)  # float64 [B, max_tokens]

    def draw(self, logits: Tensor, at: int, choices: Choices | None = None) -> tuple[Tensor, Tensor]:
        """Draw token `at` of each row.

        Args:
            logits: [b, V] of the rows that are left.
            choices: the tokens that each row may take. None: all.
        Returns:
            tokens, LongTensor [b], and their log-probs after temperature, top_k and top_p, float32 [b].
        """
        scores: Any = (
            logits.float() if choices is None else choices.of(logits)
        )  # transformers annotates tensors with legacy classes
        none: Any = scores.new_zeros(0)
        for warper in self.warpers:
            scores = warper(none, scores)  # they do not look at the tokens before
        p = torch.softmax(scores, -1)
        token = p.argmax(-1, keepdim=True) if self.greedy else _invert(p, self.uniform[:, at, None])
        logprob = p.gather(1, token)[:, 0].log()
        return (token if choices is None else choices.tokens(token))[:, 0], logprob

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of an index."""
        if not self.greedy:
            self.uniform = self.uniform[rows]


def _invert(p: Tensor, u: Tensor) -> Tensor:
    """Return the first token of each row whose cumulative probability exceeds `u`, LongTensor [b, 1].

    Sums are in float64: in an fp32 sum over 150,000 entries rare tokens would lose their share to their neighbours. In a
    large vocabulary that is a pass over 8 bytes an entry, so the sums of blocks choose a block first.

    Args:
        p: float32 [b, V].
        u: float64 [b, 1], in [0, 1).
    """
    size = p.shape[1]
    if size <= _SMALL:
        cdf = p.cumsum(-1, dtype=torch.float64)
        return torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp_(max=size - 1)
    if size % _BLOCK:
        p = torch.nn.functional.pad(p, (0, -size % _BLOCK))
    blocks = p.view(len(p), -1, _BLOCK)  # [b, V / block, block]
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    u = u * sums[:, -1:]
    block = torch.searchsorted(sums, u, right=True).clamp_(max=sums.shape[1] - 1)
    before = sums.gather(1, (block - 1).clamp(min=0)).masked_fill_(block == 0, 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    # The block's sum is rounded: a number just below it must not fall past the last token that is possible.
    rest = torch.minimum(u - before, inside[:, -1:] * (1 - 1e-9))
    return (block * _BLOCK + torch.searchsorted(inside, rest, right=True)).clamp_(max=size - 1)


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
