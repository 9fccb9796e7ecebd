"""Rewards -> advantages: group-relative per sequence or per rank, then length shaping on single tokens."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from convrec_r1.rl.config import LengthShaping

Scale = Literal["std", "none"]


def group_advantages(
    rewards: Num[Tensor, " batch"] | Num[Tensor, "batch ranks"], group_size: int, *, scale: Scale = "std"
) -> Float[Tensor, " batch"] | Float[Tensor, "batch ranks"]:
    """How much better than its group a completion did, per sequence or per rank (design section 4).

        scale="std":   A = (r - mean_G) / (std_G + 1e-4), std unbiased      GRPO, arXiv 2402.03300
        scale="none":  A = r - mean_G                                       Dr.GRPO, arXiv 2503.20783

    rewards: [B] or [B, N] with the G completions of a prompt next to each other. Same shape returned.
    A unit (prompt, or prompt and rank) whose rewards are all equal gets exactly 0, and so does a group of one.
    Raises ValueError if B is not a multiple of `group_size`.
    """
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} completions do not divide into groups of {group_size}")
    if scale not in ("std", "none"):
        raise ValueError(f'scale must be "std" or "none", found {scale!r}')
    groups = rewards.float().unflatten(0, (-1, group_size))  # [P, G] or [P, G, N]
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "std" and group_size > 1:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    # Rounding of the mean would leave crumbs where all rewards are equal. (A NaN equals nothing, and stays.)
    equal = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    return torch.where(equal, 0.0, centred).flatten(0, 1)


def per_token(
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch ranks"], ranks: Int[Tensor, "batch tokens"], n: int
) -> Float[Tensor, "batch tokens"]:
    """Spread advantages over tokens: [B, T] from [B] (every token the same) or [B, N] (each token its rank's).

    ranks: [B, T] of `segment_ranks`. Tokens of rank >= n (overflow) get 0 from [B, N]; tokens off the mask get 0.
    """
    on = ranks >= 0
    if advantages.dim() == 1:
        return torch.where(on, advantages[:, None], 0.0)
    padded = torch.nn.functional.pad(advantages[:, :n], (0, 1))  # [B, N+1]: the last column is the overflow bin
    return torch.where(on, padded.gather(1, ranks.clamp(min=0, max=n)), 0.0)


def shape_lengths(
    advantages: Float[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    is_eos: Bool[Tensor, "batch tokens"],
    lengths: Int[Tensor, " batch"],
    n: int,
    shaping: LengthShaping,
) -> Float[Tensor, "batch tokens"]:
    """Token advantages [B, T] with length shaping added (design section 4).

    ranks: [B, T].  is_eos: BoolTensor [B, T].  lengths: [B], lines of each list (`list_lengths`).
    The EOS of a list of exactly n lines earns `exact_eos` with or without a newline before it; that of a longer list
    is one of the tokens past rank n.
    """
    on = ranks >= 0
    eos = is_eos & on
    shift = torch.where(ranks >= n, shaping.overflow, 0.0)
    shift = torch.where(eos & (lengths < n)[:, None], shaping.short_eos, shift)
    shift = torch.where(eos & (lengths == n)[:, None], shaping.exact_eos, shift)
    return advantages + torch.where(on, shift, 0.0)
