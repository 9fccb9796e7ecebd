"""Score sampled lists: text -> relevance of each rank -> returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation
from convrec_r1.matching import Matching
from convrec_r1.reward.base import JudgedLists, Returns, Reward
from convrec_r1.reward.rank import Position, relevance


@dataclass(frozen=True)
class Feedback:
    """Relevance and returns of B completions."""

    texts: list[str]
    relevance: Float[Tensor, "batch ranks"]
    """[B, N] in {0, 1}."""
    returns: Float[Tensor, "batch ranks"]
    """[B, N]: return of each rank."""
    reward: Float[Tensor, " batch"]
    """[B]: reward of each list."""


class Judge:
    """Computes relevance and returns of lists, for one catalog, reward and rule for "the same item"."""

    def __init__(self, catalog: Catalog, reward: Reward, n: int, match: Matching) -> None:
        self.catalog, self.reward, self.n, self.match = catalog, reward, n, match
        self.position: Position = getattr(reward, "position", "line")

    def relevance(self, texts: Sequence[str], conversations: Sequence[Conversation]) -> Tensor:
        """Return the relevance [B, N] of each text as the answer to its conversation."""
        rows = [
            relevance(
                text, c.ground_truth, c.seen, self.catalog, self.n, position=self.position, match=self.match
            )
            for text, c in zip(texts, conversations, strict=True)
        ]  # fmt: skip
        return torch.tensor(rows, dtype=torch.float32)

    def __call__(self, texts: Sequence[str], conversations: Sequence[Conversation], device: torch.device) -> Feedback:
        """Score B texts. The tensors of the result are on `device`.

        Raises:
            UserError: The reward returned a wrong shape, or values that are not finite.
        """
        judged = JudgedLists(
            texts,
            conversations,
            self.relevance(texts, conversations).to(device),
            torch.tensor([len(self.match.distinct(c.ground_truth)) for c in conversations], device=device),
            self.catalog,
        )
        returns = Returns(*self.reward(judged))
        shape = (len(texts), self.n)
        for name, values, wanted in (("ranks", returns.ranks, shape), ("lists", returns.lists, shape[:1])):
            if tuple(values.shape) != wanted or not torch.isfinite(values).all():
                raise UserError(
                    f"reward: {type(self.reward).__name__} returned {name} of shape {list(values.shape)} "
                    f"({'not all finite' if tuple(values.shape) == wanted else f'wanted {list(wanted)}'})."
                )
        return Feedback(list(texts), judged.relevance, returns.ranks.float(), returns.lists.float())
