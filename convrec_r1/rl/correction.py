"""What the sampler drew against what the trainer would have drawn: importance weights of the surrogate."""

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from convrec_r1.rl.objective import MAX_LOG_RATIO, Ratio, unit_columns, unit_sums

Correction = Literal["none", "truncate", "mask"]


def importance_weights(
    old_logps: Float[Tensor, "batch tokens"],
    sampled_logps: Float[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    *,
    n: int,
    kind: Correction,
    unit: Ratio,
    low: float = 0.0,
    high: float = 2.0,
) -> tuple[Float[Tensor, "batch tokens"], dict[str, Float[Tensor, ""]]]:
    """Weight of each token's unit under the trainer's policy against the sampler's, bounded, and what to watch.

        w_u = exp(sum_{t in u} (old_t - sampled_t))     u: the token's unit (token, rank or sequence)

        kind="none":      1
        kind="truncate":  min(w_u, high)                `low` is not used
        kind="mask":      w_u if low <= w_u <= high, else 0

    old_logps: [B, T], log-probs of the tokens under the trainer's policy before the step's updates.
    sampled_logps: [B, T], log-probs that the engine drew them with.  mask: [B, T].
    ranks: LongTensor [B, T] of `segment_ranks`; ranks >= n are one unit.
    Both sides must be normalized over the same tokens: where top-p or top-k cut the sampler's distribution and not the
    trainer's, each token's ratio shrinks to the share of probability that was kept.

    The weight turns a mean over what the sampler drew into one over what the policy would have drawn, so w is the ratio
    of the unit's two probabilities: the product over its tokens. The geometric mean of `surrogate_loss` measures how far
    the policy moved, and no expectation comes out right with it. With unit="sequence", and no bound in reach, the
    estimate is unbiased, but its variance grows with the length. unit="token" and unit="rank" correct the choice of the
    token or the line given the text before it and leave the odds of all other text as sampled: a bias, for far less
    variance.

    Sources: inference engines make on-policy training off-policy, and token weights cut from above repair most of it
    (TIS; Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"); dropping tokens
    whose weight leaves a band, on both sides, is IcePop (Ling Team 2025, arXiv 2510.18855); whole sequences, as one
    product, either way: Liu et al. 2025, "When Speed Kills Stability". In TRL's words: token_truncate, token_mask,
    sequence_truncate, sequence_mask. Ranks as units are ours. TRL also lifts truncated weights to a floor if it is
    given one; no bound from below is needed against variance, so here truncation has none.

    Returns the weights, [B, T], float32 or wider, without gradients, 0 off the mask, and detached scalars:
    sampling/importance_sampling_ratio/min, /mean and /max of w before any bound (TRL's are after it, and for sequences
    count each once), over tokens; sampling/correction_active, the share of tokens whose weight was cut or dropped.
    Without a token they are 1, 1, 1 and 0: a part of the batch that holds none then hardly moves the extremes.
    Differences are held to +-MAX_LOG_RATIO, per token and per unit: a token that the sampler held to be impossible has
    a huge weight, not an infinite one, and two log-probs of -inf agree. NaN on the mask stays NaN, to be seen.
    Raises ValueError for an unknown kind or unit.
    """
    if kind not in ("none", "truncate", "mask"):
        raise ValueError(f"unknown kind {kind!r}: choose none, truncate or mask")
    on = mask.bool()
    dtype = torch.promote_types(torch.promote_types(old_logps.dtype, sampled_logps.dtype), torch.float32)
    old, sampled = old_logps.detach().to(dtype), sampled_logps.detach().to(dtype)
    # Equal ones apart, as -inf less -inf is NaN; bounded before the sum, as +inf and -inf in one unit add up to NaN.
    difference = torch.where(on & (old != sampled), old - sampled, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # [B, T]
    raw = unit_total(difference, ranks, n, unit).clamp(max=MAX_LOG_RATIO).exp()
    if kind == "none":
        weights, active = torch.ones_like(raw), torch.zeros_like(on)
    elif kind == "truncate":
        weights, active = raw.clamp(max=high), raw > high
    else:
        active = (raw < low) | (raw > high)  # false for NaN, which is not to vanish
        weights = torch.where(active, 0.0, raw)
    drawn = raw[on]
    if not len(drawn):
        drawn = raw.new_ones(1)
    metrics = {
        "sampling/importance_sampling_ratio/min": drawn.amin(),
        "sampling/importance_sampling_ratio/mean": (drawn / len(drawn)).sum(),  # summed first, it could be infinite
        "sampling/importance_sampling_ratio/max": drawn.amax(),
        "sampling/correction_active": (active & on).to(dtype).sum() / on.sum().clamp(min=1),
    }
    return torch.where(on, weights, 0.0), metrics


def unit_total(
    values: Float[Tensor, "batch tokens"], ranks: Int[Tensor, "batch tokens"], n: int, unit: Ratio
) -> Float[Tensor, "batch tokens"]:
    """Sum of `values` (0 off the mask) over each token's unit, [B, T]."""
    if unit == "token":
        return values
    if unit == "sequence":
        return values.sum(-1, keepdim=True).expand_as(values)
    if unit == "rank":
        return unit_sums(values, ranks, n).gather(1, unit_columns(ranks, n))
    raise ValueError(f"unknown unit {unit!r}: choose token, rank or sequence")
