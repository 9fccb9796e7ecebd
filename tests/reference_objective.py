"""The objective of design section 4, a second time: slow, plain, and written from the text alone.

Loops over completions, ranks and tokens; nothing is shared with convrec_r1.rl, so that the two can only agree by both
following the specification. Log-probs are nested lists of scalar float64 tensors: autograd gives the gradients.
"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Algorithm:
    """A row of the table in design section 4."""

    advantage: str  # "sequence" or "rank"
    ratio: str  # "token", "rank" or "sequence"
    aggregation: str  # "sequence", "constant", "token" or "rank"
    scale: str  # "std" or "none"


ALGORITHMS = {
    "grpo": Algorithm("sequence", "token", "sequence", "std"),
    "dr_grpo": Algorithm("sequence", "token", "constant", "none"),
    "gspo": Algorithm("sequence", "sequence", "sequence", "std"),
    "rank_grpo": Algorithm("rank", "rank", "rank", "std"),
    "dapo": Algorithm("sequence", "token", "token", "std"),
    "rank_grpo_reference": Algorithm("rank", "rank", "token", "std"),
}


def segment(tokens: list[tuple[bool, bool]], mask: list[bool]) -> list[int]:
    """Rank of each token. `tokens`: (has a newline, is white space only) of each."""
    rank, has_text = 0, False
    ranks = []
    for (newline, blank), on in zip(tokens, mask, strict=True):
        if not on:
            ranks.append(-1)
            continue
        ranks.append(rank)  # a token with a newline still belongs to the rank it ends
        has_text = has_text or not blank
        if newline and has_text:  # a blank line closes nothing
            rank, has_text = rank + 1, False
    return ranks


def list_length(tokens: list[tuple[bool, bool]], mask: list[bool], is_eos: list[bool]) -> int:
    """Lines that hold text; an EOS is no text."""
    lines = set()
    for (_, blank), rank, eos in zip(tokens, segment(tokens, mask), is_eos, strict=True):
        if rank >= 0 and not blank and not eos:
            lines.add(rank)
    return len(lines)


def group_advantages(rewards: list, group_size: int, scale: str) -> list:
    """`rewards`: a number per completion, or a list of N numbers per completion; the same shape comes back."""
    per_rank = bool(rewards) and isinstance(rewards[0], list)
    columns = [list(c) for c in zip(*rewards, strict=True)] if per_rank else [rewards]
    result = []
    for column in columns:
        advantages = []
        for start in range(0, len(column), group_size):
            group = column[start : start + group_size]
            mean = statistics.fmean(group)
            for r in group:
                if all(other == group[0] for other in group):  # no variance, no advantage
                    advantages.append(0.0)
                elif scale == "std":
                    advantages.append((r - mean) / (statistics.stdev(group) + 1e-4))
                else:
                    advantages.append(r - mean)
        result.append(advantages)
    return [list(row) for row in zip(*result, strict=True)] if per_rank else result[0]


def token_advantages(advantage, ranks: list[int], n: int) -> list[float]:
    """One completion's advantage at each token: `advantage` is a number, or one number per rank (overflow: 0)."""
    result = []
    for rank in ranks:
        if rank < 0:
            result.append(0.0)
        elif not isinstance(advantage, list):
            result.append(advantage)
        else:
            result.append(advantage[rank] if rank < n else 0.0)
    return result


def length_shift(
    ranks: list[int], is_eos: list[bool], length: int, n: int, short=-0.1, exact=0.1, overflow=-0.1
) -> list[float]:
    """What length shaping adds to each token of one completion with `length` lines."""
    result = []
    for rank, eos in zip(ranks, is_eos, strict=True):
        if rank < 0:
            result.append(0.0)
        elif eos and length < n:
            result.append(short)
        elif eos and length == n:  # complete with or without a newline before its EOS
            result.append(exact)
        elif rank >= n:
            result.append(overflow)
        else:
            result.append(0.0)
    return result


def unit(rank: int, position: int, n: int, kind: str):
    """A name for the unit that a token belongs to: equal names, same unit."""
    if kind == "token":
        return position
    if kind == "sequence":
        return "all"
    return min(rank, n)  # ranks >= n are one bin


def surrogate(ratio: Tensor, advantage: float, low: float, high: float, dual_clip: float | None) -> Tensor:
    clipped = ratio
    if ratio.item() < 1 - low:
        clipped = torch.tensor(1 - low, dtype=ratio.dtype)
    elif ratio.item() > 1 + high:
        clipped = torch.tensor(1 + high, dtype=ratio.dtype)
    value = ratio * advantage
    if (clipped * advantage).item() < value.item():
        value = clipped * advantage
    if dual_clip is not None and advantage < 0 and value.item() < dual_clip * advantage:
        value = torch.tensor(dual_clip * advantage, dtype=ratio.dtype)
    return value


def importance_weights(
    old_logps, sampled_logps, mask, ranks, *, n, kind, units, low=0.0, high=2.0
) -> tuple[list[list[float]], list[list[float]]]:
    """Everything [B][T]: the weights, 0 off the mask, and the same before any bound."""
    weights, unbounded = [], []
    for i in range(len(mask)):
        on = [t for t in range(len(mask[i])) if mask[i][t]]
        unbounded.append([0.0] * len(mask[i]))
        weights.append([0.0] * len(mask[i]))
        for t in on:
            mates = [s for s in on if unit(ranks[i][s], s, n, units) == unit(ranks[i][t], t, n, units)]
            weight = math.prod(math.exp(old_logps[i][s]) / math.exp(sampled_logps[i][s]) for s in mates)
            unbounded[i][t] = weight
            if kind == "none":
                weight = 1.0
            elif kind == "truncate":
                weight = min(weight, high)
            elif not low <= weight <= high:
                weight = 0.0
            weights[i][t] = weight
    return weights, unbounded


def normalizer(mask: list[list[bool]], aggregation: str, n: int, max_length: int | None) -> float:
    """The denominator of a whole optimizer batch."""
    if aggregation == "sequence":
        return len(mask)
    if aggregation == "constant":
        return len(mask) * max_length
    if aggregation == "token":
        return sum(sum(row) for row in mask)
    return len(mask) * n


def loss(
    logps,
    old_logps,
    advantages,
    mask,
    ranks,
    *,
    n,
    ratio,
    aggregation,
    clip_low,
    clip_high,
    beta=0.0,
    ref_logps=None,
    max_length=None,
    denominator=None,
    dual_clip=None,
    weights=None,
) -> Tensor:
    """Everything [B][T]: log-probs as scalars (floats or 0-d tensors), the rest as Python numbers. A 0-d tensor."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(mask)):
        on = [t for t in range(len(mask[i])) if mask[i][t]]
        for t in on:
            mates = [s for s in on if unit(ranks[i][s], s, n, ratio) == unit(ranks[i][t], t, n, ratio)]
            mean_log_ratio = sum(torch.as_tensor(logps[i][s]).item() - old_logps[i][s] for s in mates) / len(mates)
            own = torch.exp(logps[i][t] - torch.as_tensor(logps[i][t]).item())  # 1, with this token's gradient
            value = -surrogate(math.exp(mean_log_ratio) * own, advantages[i][t], clip_low, clip_high, dual_clip)
            if weights is not None:  # the reference term has no weight
                value = value * weights[i][t]
            if beta:
                d = ref_logps[i][t] - logps[i][t]
                value = value + beta * (torch.exp(d) - d - 1)
            if aggregation == "sequence":
                value = value / len(on)
            elif aggregation == "rank":
                value = value / sum(min(ranks[i][s], n) == min(ranks[i][t], n) for s in on)
            total = total + value
    if denominator is None:
        denominator = normalizer(mask, aggregation, n, max_length)
    return total / denominator if denominator else total


def dcg(relevance: list[float], start: int = 0) -> float:
    """sum_{j >= k} rel_j / log2(j + 1), j counted from 1; `start` = k - 1."""
    return sum(relevance[j] / math.log2(j + 2) for j in range(start, len(relevance)))
