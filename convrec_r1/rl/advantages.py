"""Compute advantages from rewards: relative to the group, per sequence or per rank; then length shaping per token."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from convrec_r1.rl.config import LengthShaping, Overlong

Scale = Literal["std", "none"]


def group_advantages(
    rewards: Num[Tensor, " batch"] | Num[Tensor, "batch ranks"], group_size: int, *, scale: Scale = "std"
) -> Float[Tensor, " batch"] | Float[Tensor, "batch ranks"]:
    """Return the advantage of each completion over its group, per sequence or per rank.

        scale="std":   A = (r - mean_G) / (std_G + 1e-4), std unbiased      GRPO, arXiv 2402.03300
        scale="none":  A = r - mean_G                                       Dr.GRPO, arXiv 2503.20783

    Where all rewards of a group (at a rank) are equal, the advantage is exactly 0. So it is in a group of one.

    Args:
        rewards: [B] or [B, N]; the G completions of a prompt are adjacent rows.
        group_size: G.
        scale: whether to divide by the standard deviation of the group.
    Returns:
        The advantages, in the shape of `rewards`.
    Raises:
        ValueError: B is not a multiple of `group_size`, or `scale` is unknown.
    """
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} completions do not divide into groups of {group_size}")
    if scale not in ("std", "none"):
        raise ValueError(f'scale must be "std" or "none", found {scale!r}')
    groups = rewards.float().unflatten(0, (-1, group_size))  # [P, G] or [P, G, N]
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "std" and group_size > 1:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    # Equal rewards must give exactly 0, and the rounded mean may differ from them. NaN is not equal to itself and stays.
    equal = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    return torch.where(equal, 0.0, centred).flatten(0, 1)


def overlong_penalty(lengths: Int[Tensor, " batch"], limit: int, overlong: Overlong) -> Float[Tensor, " batch"]:
    """Return the soft overlong punishment of each completion, [B], to add to its reward (DAPO, arXiv 2503.14476, eq. 13).

        0                                    length <= L_max - L_cache
        (L_max - L_cache - length) / L_cache    up to L_max
        -1                                   beyond

    Args:
        lengths: [B], tokens of each completion.
        limit: completion limit, L_max if `overlong.max_length` is None.
        overlong: L_cache is its `cache` times L_max.
    """
    longest = overlong.max_length or limit
    cache = overlong.cache * longest
    if not cache:
        return torch.zeros_like(lengths, dtype=torch.float32)
    return ((longest - cache - lengths) / cache).clamp(-1, 0)


def per_token(
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch ranks"], ranks: Int[Tensor, "batch tokens"], n: int
) -> Float[Tensor, "batch tokens"]:
    """Return the advantage of each token: that of its sequence or of its rank.

    Args:
        advantages: [B] per sequence, or [B, N] per rank.
        ranks: [B, T] from `segment_ranks`.
        n: N. With rank advantages, tokens of ranks >= n (overflow) get 0.
    Returns:
        Token advantages [B, T], 0 off the mask.
    """
    on = ranks >= 0
    if advantages.dim() == 1:
        return torch.where(on, advantages[:, None], 0.0)
    padded = torch.nn.functional.pad(advantages[:, :n], (0, 1))  # [B, N+1]: the last column is for overflow
    return torch.where(on, padded.gather(1, ranks.clamp(min=0, max=n)), 0.0)


def shape_lengths(
    advantages: Float[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    is_eos: Bool[Tensor, "batch tokens"],
    lengths: Int[Tensor, " batch"],
    n: int,
    shaping: LengthShaping,
) -> Float[Tensor, "batch tokens"]:
    """Return token advantages [B, T] with length shaping added (arXiv 2510.20150).

    The EOS of a list of exactly n lines gets `exact_eos`, with or without a newline before it. The EOS of a longer list
    counts as a token past rank n.

    Args:
        advantages: [B, T].
        ranks: [B, T] from `segment_ranks`.
        is_eos: BoolTensor [B, T].
        lengths: [B], number of lines of each list (`list_lengths`).
        n: N.
        shaping: the amounts to add.
    """
    on = ranks >= 0
    eos = is_eos & on
    shift = torch.where(ranks >= n, shaping.overflow, 0.0)
    shift = torch.where(eos & (lengths < n)[:, None], shaping.short_eos, shift)
    shift = torch.where(eos & (lengths == n)[:, None], shaping.exact_eos, shift)
    return advantages + torch.where(on, shift, 0.0)
