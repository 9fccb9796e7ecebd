"""The objective: a clipped surrogate over a unit (token, rank or sequence), aggregated in one of four ways.

An objective is any callable that takes `LossInputs` and returns `LossOutputs`: `algo.objective` may name a user's.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from convrec_r1.rl.advantages import per_token

MAX_LOG_RATIO = 80.0
"""Bound of a log-ratio: exp of more is infinite in fp32, and infinity times an advantage of zero is NaN."""

Ratio = Literal["token", "rank", "sequence"]
Aggregation = Literal["sequence", "constant", "token", "rank"]


@dataclass(frozen=True)
class LossInputs:
    """Tensors of one micro-batch: B completions of up to T tokens."""

    logps: Float[Tensor, "batch tokens"]
    """Log-probs under the policy, with gradients."""
    old_logps: Float[Tensor, "batch tokens"]
    """Log-probs under the policy before the step's updates."""
    advantages: Float[Tensor, "batch tokens"]
    """Advantage of each token, length shaping included."""
    mask: Shaped[Tensor, "batch tokens"]
    """Nonzero on tokens of the completion. Values off the mask are never read."""
    ranks: Int[Tensor, "batch tokens"]
    """Rank of each token (`segment_ranks`), from 0; -1 off the mask; n and more: overflow."""
    n: int
    """Recommendations in a list (N)."""
    aggregation: Aggregation = "rank"
    """Aggregation of token losses: `algo.aggregation`."""
    normalizer: float | Num[Tensor, ""] | None = None
    """Denominator of the whole optimizer batch. None: this is the whole batch."""
    max_length: int | None = None
    """Completion limit in tokens (L)."""
    ref_logps: Float[Tensor, "batch tokens"] | None = None
    """Log-probs under the reference policy. None: not used (`algo.beta` is 0)."""
    weights: Shaped[Tensor, "batch tokens"] | None = None
    """Importance weights of the trainer against the sampler. None: 1."""

    def aggregate(self, values: Float[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
        """Return the aggregate of token losses [B, T], over the denominator of the whole optimizer batch.

        The sum over micro-batches and devices equals the value of the whole batch. The same holds for gradients.
        """
        normalizer = self.normalizer
        if normalizer is None:
            normalizer = batch_normalizer(self.mask, self.aggregation, n=self.n, max_length=self.max_length)
        # Without any token the loss is 0, not 0 / 0.
        denominator = torch.as_tensor(normalizer, dtype=values.dtype, device=values.device)
        denominator = torch.where(denominator > 0, denominator, 1.0)
        mask = self.mask.bool().to(values.dtype)
        return (values * token_weights(mask, self.ranks, self.n, self.aggregation)).sum() / denominator


class LossOutputs(NamedTuple):
    """Loss of a micro-batch, a scalar, and detached scalars to log.

    Metrics are averaged over micro-batches and devices by their tokens; names that end in /max or /min keep the extreme.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


@runtime_checkable
class Objective(Protocol):
    """A policy objective: `LossInputs` -> `LossOutputs`, or a tuple of loss and metrics."""

    def __call__(self, inputs: LossInputs) -> LossOutputs: ...


@dataclass(frozen=True)
class ClippedSurrogate:
    """Clipped surrogate with token advantages (PPO's, arXiv 1707.06347; units as in arXiv 2510.20150).

        r_u  = exp(mean_{t in u} (logp_t - old_t))                   u: the token's unit
        r_t  = sg[r_u] pi_t / sg[pi_t]                               sg: no gradient (GSPO-token, arXiv 2507.18071, 4.3)
        s_t  = min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)  with dual_clip c > 1: at least c A_t if A_t < 0
        loss = aggregate(-w_t s_t + beta k3_t),   k3 = exp(d) - d - 1,  d = ref_logp - logp,  w: `weights`; None: 1

    The value of r_t is that of its unit, so a unit is clipped as a whole. Its gradient is that of its own token, so an
    advantage on a single token (length shaping) acts on that token. Where advantage and weight are the same all over a unit,
    this is r_u with its own gradient.

    aggregation     weight of a token                      denominator (`normalizer`, of the whole optimizer batch)
    sequence        1 / T_i                                B
    constant        1                                      B L, L = `max_length`
    token           1                                      tokens
    rank            1 / |y_ik|, overflow one more unit     B N

    Completions without tokens add nothing to the sum; they count in B. `weights` scale the surrogate after it is clipped, and
    no denominator: a token of weight 0 still counts in it.

    Metrics, each a mean over this batch's tokens: clip_ratio/low_mean, clip_ratio/high_mean, clip_ratio/region_mean,
    ratio/mean, ratio/max (a maximum) and, with beta, kl.

    Raises:
        ValueError: unknown ratio or aggregation, a missing `max_length`, or beta without `ref_logps`.
    """

    ratio: Ratio = "rank"
    clip_low: float = 0.06
    clip_high: float = 0.08
    dual_clip: float | None = None
    beta: float = 0.0

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        on = inputs.mask.bool()
        # float32: bf16 cannot count the tokens
        logps = inputs.logps.to(torch.promote_types(inputs.logps.dtype, torch.float32))
        mask = on.to(logps.dtype)
        difference = torch.where(on, logps - inputs.old_logps, 0.0)
        r = token_ratio(logps, unit_log_ratio(difference.detach(), mask, inputs.ranks, inputs.n, self.ratio), on)
        loss_t = -self._surrogate(r, inputs.advantages)
        if inputs.weights is not None:
            loss_t = torch.where(on, inputs.weights.to(loss_t.dtype), 0.0) * loss_t
        metrics = self._ratio_metrics(r, inputs.advantages, mask)
        if self.beta:
            if inputs.ref_logps is None:
                raise ValueError("beta > 0 needs ref_logps, the log-probs of the reference policy")
            d = torch.where(on, inputs.ref_logps - logps, 0.0)
            kl = d.exp() - d - 1
            loss_t = loss_t + self.beta * kl
            metrics["kl"] = token_mean(kl, mask)
        return LossOutputs(inputs.aggregate(loss_t), metrics)

    def _surrogate(
        self, r: Float[Tensor, "batch tokens"], advantages: Float[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens"]:
        clipped = r.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
        surrogate = torch.minimum(r * advantages, clipped)
        if self.dual_clip is not None:
            bounded = torch.maximum(surrogate, self.dual_clip * advantages)
            surrogate = torch.where(advantages < 0, bounded, surrogate)
        return surrogate

    def _ratio_metrics(
        self,
        r: Float[Tensor, "batch tokens"],
        advantages: Float[Tensor, "batch tokens"],
        mask: Float[Tensor, "batch tokens"],
    ) -> dict[str, Float[Tensor, ""]]:
        low = (r < 1 - self.clip_low) & (advantages < 0)
        high = (r > 1 + self.clip_high) & (advantages > 0)
        return {
            "clip_ratio/low_mean": token_mean(low.to(r.dtype), mask),
            "clip_ratio/high_mean": token_mean(high.to(r.dtype), mask),
            "clip_ratio/region_mean": token_mean((low | high).to(r.dtype), mask),
            "ratio/mean": token_mean(r, mask),
            "ratio/max": torch.where(mask.bool(), r, 0.0).detach().amax() if r.numel() else r.new_zeros(()),
        }


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
    """Return the policy loss of a batch of completions and its metrics, in one call.

    `ClippedSurrogate` and `LossInputs` describe the other arguments.

    Args:
        advantages: [B], [B, N] (tokens past rank N: 0) or [B, T]. Where T equals N, a second dimension of N means ranks.
    Raises:
        ValueError: advantages of another shape, and what `ClippedSurrogate` raises.
    """
    if advantages.dim() == 1 or advantages.shape[1] == n:
        advantages = per_token(advantages, ranks, n)
    elif advantages.shape != logps.shape:
        raise ValueError(
            f"advantages must be [B], [B, N={n}] or [B, T] = {list(logps.shape)}, found {list(advantages.shape)}"
        )
    inputs = LossInputs(
        logps, old_logps, advantages, mask, ranks, n=n, aggregation=aggregation, normalizer=normalizer,
        max_length=max_length, ref_logps=ref_logps, weights=weights,
    )  # fmt: skip
    return ClippedSurrogate(ratio, clip_low, clip_high, dual_clip, beta)(inputs)


def token_ratio(
    logps: Float[Tensor, "batch tokens"], log_ratio: Float[Tensor, "batch tokens"], on: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return exp(log_ratio) with the gradient of each token's own probability, [B, T].

    Args:
        logps: with gradients.
        log_ratio: of each token's unit, without gradients. Beyond +-MAX_LOG_RATIO there is no gradient.
        on: the mask.
    """
    # An infinite log-prob less itself would be NaN.
    own = torch.where(on & (log_ratio.abs() <= MAX_LOG_RATIO), logps, 0.0)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp() * (own - own.detach()).exp()


def token_mean(values: Float[Tensor, "batch tokens"], mask: Float[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """Return the mean of `values` over the tokens of the mask, without gradients; 0 without tokens."""
    return (values.detach() * mask).sum() / mask.sum().clamp(min=1)


def unit_log_ratio(
    log_ratio: Float[Tensor, "batch tokens"],
    mask: Float[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    n: int,
    ratio: Ratio,
) -> Float[Tensor, "batch tokens"]:
    """Return the mean log-ratio over each token's unit, [B, T]: the log of the geometric mean of the token ratios.

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
    """Return the weight of each token in the sum of losses, [B, T]; 0 off the mask."""
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
    """Return the denominator of a batch, a scalar. The denominators of micro-batches add up to that of the whole batch."""
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
    """Return the sum of `values` (0 off the mask) over each rank, [B, N+1]. The last column is overflow."""
    return values.new_zeros(values.shape[0], n + 1).scatter_add(1, unit_columns(ranks, n), values)


def unit_columns(ranks: Int[Tensor, "batch tokens"], n: int) -> Int[Tensor, "batch tokens"]:
    """Return the column of each token's unit: its rank, or n for overflow. Tokens off the mask get 0; their weight is 0."""
    return ranks.clamp(min=0, max=n)
