"""What every reward takes and returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation


@dataclass(frozen=True)
class JudgedLists:
    """B sampled lists and what the users' feedback says of them. The G lists of a prompt stand next to each other."""

    texts: Sequence[str]
    """B completions as text."""
    conversations: Sequence[Conversation]
    """B conversations, one for each text."""
    relevance: Float[Tensor, "batch ranks"]
    """[B, N] in {0, 1}: `reward.relevance` of each text."""
    n_relevant: Int[Tensor, " batch"]
    """[B]: ground truths of each conversation."""
    catalog: Catalog


class Returns(NamedTuple):
    """What is earned."""

    ranks: Float[Tensor, "batch ranks"]
    """[B, N]: by each rank. Credited where `algo.advantage` is rank."""
    lists: Float[Tensor, " batch"]
    """[B]: by each list. Credited where `algo.advantage` is sequence, and logged as `reward`."""


@runtime_checkable
class Reward(Protocol):
    """A reward: judged lists -> returns. A class with `__call__`, or a function.

    Both tensors must be finite, float32, and on the device of `lists.relevance`. An attribute `position` ("line" or "parsed",
    by default "line") says which rank a line has that is not an item.
    """

    def __call__(self, lists: JudgedLists) -> Returns: ...
