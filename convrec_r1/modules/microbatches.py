"""Cut the completions of an optimizer step into forward and backward passes: memory and speed, never the result."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from convrec_r1.modules.config import PassLimit
from convrec_r1.policy import TokenBatch


def micro_batches(batch: TokenBatch, rows: Tensor, limit: PassLimit, *, packs: bool, count: int = 1) -> list[Tensor]:
    """Return the rows of each pass over some completions.

    Completions of one prompt stay together, unless there are more of them than a pass holds. Neighbours have similar lengths.

    Args:
        batch: prompts and completions.
        rows: LongTensor [R], of `batch`.
        limit: of a pass.
        packs: whether the policy reads a prompt once for all its completions in a pass, without padding (`Policy.packs`).
        count: least number of passes: under FSDP all processes must make the same number.
    Raises:
        ValueError: `count` is more than R.
    """
    owner, prompts, lists = (t.tolist() for t in (batch.owner, batch.prompt_lengths, batch.mask.sum(-1)))
    sizes = Sizes(owner, prompts, lists) if packs else Padded(owner, prompts, lists)
    order = sorted(rows.tolist(), key=sizes.order)
    parts: list[list[int]] = []
    for part in _units(order, sizes, limit):
        if parts and sizes.fits([*parts[-1], *part], limit):
            parts[-1] += part
        else:
            parts.append(list(part))
    if count > len(order):
        raise ValueError(f"{len(order)} completions do not make {count} passes")
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        part = parts[largest]
        parts[largest : largest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return [torch.tensor(part, device=rows.device) for part in parts]


class Sizes:
    """Lengths of completions and of their prompts, for a policy that packs them."""

    def __init__(self, owner: Sequence[int], prompts: Sequence[int], lists: Sequence[int]) -> None:
        """owner, prompts, lists: [B], prompt of each completion, its length, and that of the completion."""
        self.owner, self.prompts, self.lists = owner, prompts, lists

    def order(self, row: int) -> tuple[int, ...]:
        return self.prompts[row], self.owner[row], self.lists[row], row

    def unit(self, row: int) -> int:
        """Return what must be equal for rows to stay together."""
        return self.owner[row]

    def tokens(self, rows: Sequence[int]) -> int:
        """Return the tokens of a pass over `rows`."""
        return sum({self.owner[row]: self.prompts[row] for row in rows}.values()) + sum(self.lists[row] for row in rows)

    def fits(self, rows: Sequence[int], limit: PassLimit) -> bool:
        fewer = limit.sequences is None or len(rows) <= limit.sequences
        return fewer and (limit.tokens is None or self.tokens(rows) <= limit.tokens)


class Padded(Sizes):
    """The same for a policy that reads prompt and completion as one row, padded to the longest."""

    def order(self, row: int) -> tuple[int, ...]:
        return self.prompts[row] + self.lists[row], row

    def unit(self, row: int) -> int:
        return row

    def tokens(self, rows: Sequence[int]) -> int:
        return len(rows) * max(self.prompts[row] + self.lists[row] for row in rows)


def _units(order: Sequence[int], sizes: Sizes, limit: PassLimit) -> Iterator[list[int]]:
    """Yield the rows that stay together; those of one prompt in several parts if they do not fit."""
    for _, rows in groupby(order, sizes.unit):
        part: list[int] = []
        for row in rows:
            if part and not sizes.fits([*part, row], limit):
                yield part
                part = []
            part.append(row)
        yield part
