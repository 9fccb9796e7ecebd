"""Cut the completions of a step into the optimizer steps of one pass."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def minibatches(slots: Sequence[int], group_size: int, count: int, order: Callable[[int], Tensor]) -> list[Tensor]:
    """Return the rows of each of `count` optimizer steps, of one process.

    Which completions share a step follows from the slots alone, not from how groups are distributed to processes. Each group
    is cut into gcd(count, G) shares, in its own order. If that is less than `count`, the groups are dealt out as well, by
    their slot modulo count / gcd(count, G).

    Args:
        slots: places of this process's groups in the step: a range. Its rows are P x G, groups contiguous.
        group_size: G.
        count: minibatches of a pass.
        order: slot -> permutation of the group's completions, LongTensor [G].
    Raises:
        ValueError: the completions do not divide: processes would have minibatches of different sizes.
    """
    shares = math.gcd(count, group_size)
    hands = count // shares
    if len(slots) % hands:
        raise ValueError(f"{len(slots)} groups of {group_size} do not divide into {count} minibatches")
    rows = torch.arange(len(slots) * group_size).view(-1, group_size)  # [P, G]
    if count > 1:
        rows = rows.gather(1, torch.stack([order(slot) for slot in slots]))
    hand = torch.tensor(list(slots)) % hands
    return [share[hand == k].flatten() for share in rows.chunk(shares, 1) for k in range(hands)]
