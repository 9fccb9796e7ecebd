"""The one objective: a clipped surrogate over a unit (token, rank or sequence), aggregated in one of four ways."""

from typing import Literal

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from convrec_r1.rl.advantages import per_token

MAX_LOG_RATIO = 80.0
"""exp of more is infinite in fp32, and infinity times an advantage of zero is no number."""

Ratio = Literal["token", "rank", "sequence"]
Aggregation = Literal["sequence", "constant", "token", "rank"]


def policy_loss(
    logps: Float[Tensor, "batch tokens"],
    old_logps: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch ranks"] | Float[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    *,
    n: int,
    ratio: Ratio,
    aggregation: Aggregation,
    clip_low: float,
    clip_high: float,
    beta: float = 0.0,
    ref_logps: Float[Tensor, "batch tokens"] | None = None,
    max_length: int | None = None,
    normalizer: float | Num[Tensor, ""] | None = None,
    dual_clip: float | None = None,
    weights: Shaped[Tensor, "batch tokens"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The policy loss of a batch of completions, and what to watch (design section 4).

    logps, old_logps, ref_logps, mask: [B, T].  ranks: LongTensor [B, T] of `segment_ranks`.
    advantages: [B], [B, N] (tokens past rank N: 0) or [B, T]; where T equals N, a second dimension of N means ranks
    (the training loop expands advantages itself and calls `surrogate_loss`, so nothing there hangs on it).
    The other arguments and the return value are those of `surrogate_loss`.
    """
    if advantages.dim() == 1 or advantages.shape[1] == n:
        advantages = per_token(advantages, ranks, n)
    elif advantages.shape != logps.shape:
        raise ValueError(
            f"advantages must be [B], [B, N={n}] or [B, T] = {list(logps.shape)}, found {list(advantages.shape)}"
        )
    return surrogate_loss(
        logps, old_logps, advantages, mask, ranks, n=n, ratio=ratio, aggregation=aggregation, clip_low=clip_low,
        clip_high=clip_high, beta=beta, ref_logps=ref_logps, max_length=max_length, normalizer=normalizer,
        dual_clip=dual_clip, weights=weights,
    )  # fmt: skip


def surrogate_loss(
    logps: Float[Tensor, "batch tokens"],
    old_logps: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    *,
    n: int,
    ratio: Ratio,
    aggregation: Aggregation,
    clip_low: float,
    clip_high: float,
    beta: float = 0.0,
    ref_logps: Float[Tensor, "batch tokens"] | None = None,
    max_length: int | None = None,
    normalizer: float | Num[Tensor, ""] | None = None,
    dual_clip: float | None = None,
    weights: Shaped[Tensor, "batch tokens"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Clipped surrogate with token advantages [B, T].

        r_u  = exp(mean_{t in u} (logp_t - old_t))                   u: the token's unit
        s_t  = min(r A_t, clip(r, 1 - clip_low, 1 + clip_high) A_t)      with dual_clip c > 1: at least c A_t if A_t < 0
        loss = aggregate(-w_t s_t + beta k3_t),   k3 = exp(d) - d - 1,  d = ref_logp - logp,  w: `weights`; None: 1

    aggregation     weight of a token                      denominator (`normalizer`, of the whole optimizer batch)
    sequence        1 / T_i                                B
    constant        1                                      B L, L = `max_length`
    token           1                                      tokens
    rank            1 / |y_ik|, overflow one more unit     B N

    `normalizer`: `batch_normalizer` of the whole optimizer batch, over accumulation steps and devices; None: this
    batch is the whole. Losses of the parts then add up to the loss of the whole, and so do gradients.
    Completions without tokens add nothing to the sum; they count in B.
    `weights`: [B, T] of `importance_weights`, constants that correct for the sampler; off the mask they are not read.
    They scale the surrogate alone, after it is clipped, and no denominator: a token of weight 0 still counts in it.

    Returns the loss, a scalar, and detached metrics, each a mean over this batch's tokens: clip_ratio/low_mean,
    clip_ratio/high_mean, clip_ratio/region_mean, ratio/mean, ratio/max (a maximum) and, with a reference, kl.
    Raises ValueError for an unknown ratio or aggregation, a missing `max_length`, or beta without `ref_logps`.
    """
    on = mask.bool()
    logps = logps.to(torch.promote_types(logps.dtype, torch.float32))  # bf16 could not even count the tokens
    mask = on.to(logps.dtype)
    log_ratio = unit_log_ratio(torch.where(on, logps - old_logps, 0.0), mask, ranks, n, ratio)  # [B, T]
    r = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    unclipped = r * advantages
    clipped = r.clamp(1 - clip_low, 1 + clip_high) * advantages
    surrogate = torch.minimum(unclipped, clipped)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    loss_t = -surrogate
    if weights is not None:
        loss_t = torch.where(on, weights.to(loss_t.dtype), 0.0) * loss_t
    low = (r < 1 - clip_low) & (advantages < 0)
    high = (r > 1 + clip_high) & (advantages > 0)
    metrics = {
        "clip_ratio/low_mean": token_mean(low.to(r.dtype), mask),
        "clip_ratio/high_mean": token_mean(high.to(r.dtype), mask),
        "clip_ratio/region_mean": token_mean((low | high).to(r.dtype), mask),
        "ratio/mean": token_mean(r, mask),
        "ratio/max": torch.where(on, r, 0.0).detach().amax() if r.numel() else r.new_zeros(()),
    }
    if beta:
        if ref_logps is None:
            raise ValueError("beta > 0 needs ref_logps, the log-probs of the reference policy")
        d = torch.where(on, ref_logps - logps, 0.0)
        kl = d.exp() - d - 1
        loss_t = loss_t + beta * kl
        metrics["kl"] = token_mean(kl, mask)
    if normalizer is None:
        normalizer = batch_normalizer(mask, aggregation, n=n, max_length=max_length)
    # A batch without a single token has loss 0, not 0 / 0.
    denominator = torch.as_tensor(normalizer, dtype=logps.dtype, device=logps.device)
    denominator = torch.where(denominator > 0, denominator, 1.0)
    return (loss_t * token_weights(mask, ranks, n, aggregation)).sum() / denominator, metrics


def token_mean(values: Float[Tensor, "batch tokens"], mask: Float[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """Mean of `values` over the tokens of the mask, without gradients; 0 where there are none."""
    return (values.detach() * mask).sum() / mask.sum().clamp(min=1)


def unit_log_ratio(
    log_ratio: Float[Tensor, "batch tokens"],
    mask: Float[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    n: int,
    ratio: Ratio,
) -> Float[Tensor, "batch tokens"]:
    """Mean log-ratio over each token's unit, [B, T]: the log of the geometric mean of the unit's token ratios.

    Sequences as in GSPO (arXiv 2507.18071, eq. 7), ranks as in Rank-GRPO (arXiv 2510.20150); overflow is one unit.
    """
    if ratio == "token":
        return log_ratio
    if ratio == "sequence":
        mean = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return mean.expand_as(log_ratio)
    if ratio == "rank":
        mean = unit_sums(log_ratio * mask, ranks, n) / unit_sums(mask, ranks, n).clamp(min=1)  # [B, N+1]
        return mean.gather(1, unit_columns(ranks, n))
    raise ValueError(f"unknown ratio {ratio!r}: choose token, rank or sequence")


def token_weights(
    mask: Float[Tensor, "batch tokens"], ranks: Int[Tensor, "batch tokens"], n: int, aggregation: Aggregation
) -> Float[Tensor, "batch tokens"]:
    """Weight of each token in the sum of losses, [B, T]; 0 off the mask."""
    if aggregation == "sequence":
        return mask / mask.sum(-1, keepdim=True).clamp(min=1)
    if aggregation in ("constant", "token"):
        return mask
    if aggregation == "rank":
        return mask / unit_sums(mask, ranks, n).clamp(min=1).gather(1, unit_columns(ranks, n))
    raise ValueError(f"unknown aggregation {aggregation!r}: choose sequence, constant, token or rank")


def batch_normalizer(
    mask: Shaped[Tensor, "batch tokens"], aggregation: Aggregation, *, n: int, max_length: int | None = None
) -> Float[Tensor, ""]:
    """The denominator that a batch of completions contributes, a scalar; those of parts add up to that of the whole."""
    rows = torch.tensor(float(mask.shape[0]), device=mask.device)
    if aggregation == "sequence":
        return rows
    if aggregation == "constant":
        if max_length is None:
            raise ValueError("aggregation 'constant' needs max_length, the completion limit in tokens")
        return rows * max_length
    if aggregation == "token":
        return mask.sum().float()
    if aggregation == "rank":
        return rows * n
    raise ValueError(f"unknown aggregation {aggregation!r}: choose sequence, constant, token or rank")


def unit_sums(
    values: Float[Tensor, "batch tokens"], ranks: Int[Tensor, "batch tokens"], n: int
) -> Float[Tensor, "batch {n}+1"]:
    """Sum of `values` (0 off the mask) over each rank, the overflow bin last: [B, N+1]. Of the mask: tokens in each."""
    return values.new_zeros(values.shape[0], n + 1).scatter_add(1, unit_columns(ranks, n), values)


def unit_columns(ranks: Int[Tensor, "batch tokens"], n: int) -> Int[Tensor, "batch tokens"]:
    """Column of each token's unit: its rank, n for all that overflows. Tokens off the mask fall on 0, weightless."""
    return ranks.clamp(min=0, max=n)
