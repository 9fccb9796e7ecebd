"""Interface of a reward: inputs, outputs, protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation


@dataclass(frozen=True)
class JudgedLists:
    """B sampled lists with their relevance. The G lists of a prompt are adjacent."""

    texts: Sequence[str]
    """B completions as text."""
    conversations: Sequence[Conversation]
    """B conversations, one for each text."""
    relevance: Float[Tensor, "batch ranks"]
    """[B, N] in {0, 1}: `reward.relevance` of each text."""
    n_relevant: Int[Tensor, " batch"]
    """[B]: ground truths of each conversation; one that is listed twice counts once."""
    catalog: Catalog


class Returns(NamedTuple):
    """Returns of ranks and lists."""

    ranks: Float[Tensor, "batch ranks"]
    """[B, N]: return of each rank. Used if `algo.advantage` is rank."""
    lists: Float[Tensor, " batch"]
    """[B]: return of each list. Used if `algo.advantage` is sequence, and logged as `reward`."""


@runtime_checkable
class Reward(Protocol):
    """A reward: judged lists -> returns. A class with `__call__`, or a function.

    Both tensors must be finite, float32, and on the device of `lists.relevance`. The optional attribute `position` is the rank
    rule for lines that are not items: "line" (default) or "parsed", see `relevance`.
    """

    def __call__(self, lists: JudgedLists) -> Returns: ...
