"""How often users wanted each item in training: the popularity baseline, and head, middle and tail of a catalog."""

from collections.abc import Iterable

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation
from convrec_r1.lists import Item, fold

SEGMENTS = ("head", "mid", "tail")


class Popularity:
    """Interactions (ground truths of training conversations) per catalog item, and what follows from them.

    Arrays stand in catalog order:

    counts    [C] interactions of each item
    ranks     [C] 1 for the most popular item; ties keep the catalog's order, so the ranking is always the same
    segments  [C] index into SEGMENTS. Down the ranking, an item is head while the items before it hold less than a
              third of all interactions, mid while they hold less than two thirds, tail from there on: the item that
              crosses a boundary belongs to the more popular side, and an item nobody asked for is tail.
    """

    def __init__(self, items: Iterable[Item], counts: Iterable[int]) -> None:
        self.items = [Item(*item) for item in items]
        self.counts = np.fromiter(counts, dtype=np.int64)
        if len(self.counts) != len(self.items):
            raise ValueError(f"{len(self.items)} items but {len(self.counts)} counts")
        self.total = int(self.counts.sum())
        """All interactions that count. 0: nothing is known of popularity, and head and tail mean nothing."""
        self._order = np.argsort(-self.counts, kind="stable")
        self.ranks = np.empty(len(self.items), dtype=np.int64)
        self.ranks[self._order] = np.arange(1, len(self.items) + 1)
        in_order = self.counts[self._order]
        before = np.cumsum(in_order) - in_order
        self.segments = np.empty(len(self.items), dtype=np.int64)
        # Whole numbers: 3 * before < total, so that no rounding moves an item across a boundary.
        self.segments[self._order] = (3 * before >= self.total).astype(np.int64) + (3 * before >= 2 * self.total)
        self._lookup = ItemIndex(self.items)
        self._titles = [fold(item.title) for item in self.items]

    @classmethod
    def from_conversations(cls, conversations: Iterable[Conversation], catalog: Catalog) -> "Popularity":
        """Count the ground truths of the training conversations.

        Conversations of other splits are passed over, so that handing in a whole dataset leaks nothing of its test
        part. Ground truths outside the catalog count nowhere.
        """
        items = list(catalog)
        index = ItemIndex(items)
        counts = np.zeros(len(items), dtype=np.int64)
        for conversation in conversations:
            if conversation.split != "train":
                continue
            for item in conversation.ground_truth:
                at = index.find(item)
                if at is not None:
                    counts[at] += 1
        return cls(items, counts)

    def index(self, item: Item) -> int | None:
        """The item's place in the catalog, or None (see ItemIndex)."""
        return self._lookup.find(item)

    def rank(self, item: Item) -> int | None:
        """1 for the most popular item of the catalog; None for an item outside it."""
        at = self.index(item)
        return None if at is None else int(self.ranks[at])

    def segment(self, item: Item) -> str | None:
        """ "head", "mid" or "tail"; None for an item outside the catalog, or where no interactions are known."""
        at = self.index(item)
        return None if at is None or not self.total else SEGMENTS[self.segments[at]]

    def recommend(self, conversation: Conversation, n: int) -> list[Item]:
        """The popularity baseline: the `n` most popular items whose titles the user has not seen.

        Fewer than `n` if the catalog runs out. Without any interactions the order would be the catalog's own, which
        is no baseline: UserError.
        """
        if not self.total:
            raise UserError(
                "The popularity baseline needs training conversations with ground truths in the catalog, found none. "
                "Check the dataset's train split, or leave the baseline out."
            )
        seen = {fold(title) for title in conversation.seen}
        chosen: list[Item] = []
        for at in self._order:
            if len(chosen) >= n:
                break
            if self._titles[at] not in seen:
                chosen.append(self.items[at])
        return chosen


class ItemIndex:
    """Item -> place in a list of items: by folded title and year.

    Where the years of the two do not both exist, the title alone decides if only one item bears it. Of items that
    are the same after folding the first counts.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._exact: dict[tuple[str, int | None], int] = {}
        self._by_title: dict[str, list[int]] = {}
        self._yearless: set[int] = set()
        for at, (title, year) in enumerate(items):
            key = (fold(title), year)
            if key in self._exact:
                continue
            self._exact[key] = at
            self._by_title.setdefault(key[0], []).append(at)
            if year is None:
                self._yearless.add(at)

    def find(self, item: Item) -> int | None:
        title, year = fold(item[0]), item[1]
        at = self._exact.get((title, year))
        if at is not None:
            return at
        same_title = self._by_title.get(title, [])
        if len(same_title) == 1 and (year is None or same_title[0] in self._yearless):
            return same_title[0]
        return None
