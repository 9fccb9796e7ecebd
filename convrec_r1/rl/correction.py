"""Importance weights that correct for the difference between the sampler's and the trainer's probabilities."""

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
    """Return the importance weight of each token's unit, bounded, and metrics of the weights before bounding.

        w_u = exp(sum_{t in u} (old_t - sampled_t))     u: the token's unit (token, rank or sequence)

        kind="none":      1
        kind="truncate":  min(w_u, high)                `low` is not used
        kind="mask":      w_u if low <= w_u <= high, else 0

    The weights turn a mean over samples of the engine into a mean over samples of the policy. So w is the ratio of the
    unit's probabilities, the product over its tokens. The geometric mean in `ClippedSurrogate` measures the change of the
    policy; it would not give an unbiased mean. unit="sequence" is unbiased as long as no bound is reached, but its variance
    grows with the length. unit="token" and unit="rank" correct the probability of the token or line given the text before
    it, and not that of the other text: biased, with far less variance.

    Both log-probs must be normalized over the same tokens. If top-p or top-k cut the sampler's distribution, every ratio is
    too small.

    Sources: token weights truncated from above: TIS (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training"). Tokens masked outside a band: IcePop (Ling Team 2025, arXiv 2510.18855). Sequences, truncated or
    masked: Liu et al. 2025, "When Speed Kills Stability". TRL calls these token_truncate, token_mask, sequence_truncate and
    sequence_mask. The rank unit is new here. TRL can also raise truncated weights to a lower bound; a lower bound does not
    reduce variance, so there is none here.

    Args:
        old_logps: [B, T], log-probs under the trainer's policy before the step's updates.
        sampled_logps: [B, T], log-probs under the engine that sampled the tokens.
        mask: [B, T], nonzero on tokens of the completion.
        ranks: LongTensor [B, T] from `segment_ranks`. Ranks >= n form one unit.
        n: N.
        kind: see above.
        unit: see above.
        low: lower bound of kind="mask".
        high: upper bound.
    Returns:
        Weights [B, T]: float32 or wider, without gradients, 0 off the mask.
        Metrics, detached scalars: sampling/importance_sampling_ratio/min, /mean and /max of w over tokens before bounding
        (TRL: after bounding, each sequence once), and sampling/correction_active, the share of tokens with a weight that
        was truncated or masked. Without any token: 1, 1, 1 and 0.
        Log-ratios are clamped to +-MAX_LOG_RATIO per token and per unit, so a token that was impossible for the sampler has
        a large, finite weight. Two log-probs of -inf give 1. NaN on the mask stays NaN.
    Raises:
        ValueError: unknown `kind` or `unit`.
    """
    if kind not in ("none", "truncate", "mask"):
        raise ValueError(f"unknown kind {kind!r}: choose none, truncate or mask")
    on = mask.bool()
    dtype = torch.promote_types(torch.promote_types(old_logps.dtype, sampled_logps.dtype), torch.float32)
    old, sampled = old_logps.detach().to(dtype), sampled_logps.detach().to(dtype)
    # Equal log-probs are left out because -inf - -inf is NaN. Clamped before the sum because +inf + -inf is NaN.
    difference = torch.where(on & (old != sampled), old - sampled, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # [B, T]
    raw = unit_total(difference, ranks, n, unit).clamp(max=MAX_LOG_RATIO).exp()
    if kind == "none":
        weights, active = torch.ones_like(raw), torch.zeros_like(on)
    elif kind == "truncate":
        weights, active = raw.clamp(max=high), raw > high
    else:
        active = (raw < low) | (raw > high)  # False for NaN, which must stay visible
        weights = torch.where(active, 0.0, raw)
    drawn = raw[on]
    if not len(drawn):
        drawn = raw.new_ones(1)
    metrics = {
        "sampling/importance_sampling_ratio/min": drawn.amin(),
        "sampling/importance_sampling_ratio/mean": (drawn / len(drawn)).sum(),  # divided first: the sum could overflow
        "sampling/importance_sampling_ratio/max": drawn.amax(),
        "sampling/correction_active": (active & on).to(dtype).sum() / on.sum().clamp(min=1),
    }
    return torch.where(on, weights, 0.0), metrics


def unit_total(
    values: Float[Tensor, "batch tokens"], ranks: Int[Tensor, "batch tokens"], n: int, unit: Ratio
) -> Float[Tensor, "batch tokens"]:
    """Return for each token the sum of `values` (0 off the mask) over its unit, [B, T]."""
    if unit == "token":
        return values
    if unit == "sequence":
        return values.sum(-1, keepdim=True).expand_as(values)
    if unit == "rank":
        return unit_sums(values, ranks, n).gather(1, unit_columns(ranks, n))
    raise ValueError(f"unknown unit {unit!r}: choose token, rank or sequence")
