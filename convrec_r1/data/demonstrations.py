"""Demonstrations for data that has none: the ground truths, then what other conversations name beside them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.lists import Item
from convrec_r1.matching import Matching


class Neighbours:
    """Makes a list of up to `n` catalog items for a training conversation without a demonstration.

    First its own ground truths; then items by how often other training conversations name them together with what this one
    names (as ground truth or as a seen title), divided by the square root of their count so that popular items do not fill
    every list; then the most frequent items. Seen titles are left out.

    train: all training conversations. They are read once.
    """

    def __init__(self, train: Iterable[Conversation], catalog: Catalog, n: int, match: Matching) -> None:
        self.catalog, self.n, self.match = catalog, n, match
        self._counts: Counter[Item] = Counter()
        self._together: dict[Item, Counter[Item]] = defaultdict(Counter)
        for conversation in train:
            basket = self._named(conversation)
            self._counts.update(basket)
            for item in basket:
                self._together[item].update(other for other in basket if other != item)
        self._popular = sorted(self._counts, key=lambda item: (-self._counts[item], str(item)))

    def __call__(self, conversation: Conversation) -> Conversation:
        """Return the conversation with its own demonstration, or else with one from its neighbours."""
        if conversation.demonstration:
            return conversation
        scores: Counter[Item] = Counter()
        for item in self._named(conversation):
            scores.update(self._together[item])
        near = sorted(scores, key=lambda item: (-scores[item] / self._counts[item] ** 0.5, str(item)))
        seen = self.match.seen_keys(conversation.seen)
        chosen: dict[Item, None] = {}
        for item in chain(self._truths(conversation), near, self._popular):
            if len(chosen) >= self.n:
                break
            if self.match.key(item.title) not in seen:
                chosen[item] = None
        return replace(conversation, demonstration=tuple(chosen) or None)

    def _truths(self, conversation: Conversation) -> list[Item]:
        found = (self.catalog.find(item, self.match) for item in conversation.ground_truth)
        return [item for item in found if item is not None]

    def _named(self, conversation: Conversation) -> list[Item]:
        """Return the catalog items that it names, each once. A seen title counts if only one item has it."""
        titled = (self.catalog.titled(title, self.match) for title in conversation.seen)
        return list(dict.fromkeys([*self._truths(conversation), *(items[0] for items in titled if len(items) == 1)]))


def add_demonstrations(data: Dataset, n: int, match: Matching) -> Dataset:
    """Give every training conversation without a demonstration a list of its neighbours."""
    neighbours = Neighbours(data["train"], data.catalog, n, match)
    return Dataset(data.catalog, {**data.splits, "train": [neighbours(c) for c in data["train"]]})
