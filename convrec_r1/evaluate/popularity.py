"""Popularity of items in training: a ranking of the catalog, and its head, middle and tail."""

import contextlib
from collections.abc import Iterable
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from convrec_r1.base.digest import of_code, of_value
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.base.plugins import TARGET, source_digests
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation, Dataset
from convrec_r1.data.stored import Rows
from convrec_r1.lists import Item
from convrec_r1.matching import Folded, Matching

SEGMENTS = ("head", "mid", "tail")
_FOLDED = Folded()
_CODE = ("evaluate/popularity", "data/catalog", "lists", "matching")
"""Code that decides the counts."""


class Popularity:
    """Interactions (ground truths of training conversations), rank and segment of each catalog item.

    Args:
        items: Items of the catalog.
        counts: Interactions of each item.
        match: Rule for "the same item".

    Arrays are in catalog order:

    counts    [C] interactions of each item
    ranks     [C] 1 for the most popular item; ties keep the order of the catalog
    segments  [C] index into SEGMENTS. An item is head if the items ranked above it hold less than a third of all interactions,
              mid if they hold less than two thirds, else tail. An item without interactions is tail.
    """

    def __init__(self, items: Iterable[Item], counts: Iterable[int], match: Matching = _FOLDED) -> None:
        self.match = match
        self._catalog = items if isinstance(items, Catalog) else None
        self.items = [Item(*item) for item in items]
        self.counts = np.fromiter(counts, dtype=np.int64)
        if len(self.counts) != len(self.items):
            raise ValueError(f"{len(self.items)} items but {len(self.counts)} counts")
        self.total = int(self.counts.sum())
        """Number of interactions. 0: popularity is unknown, and there are no segments."""
        self._order = np.argsort(-self.counts, kind="stable")
        self.ranks = np.empty(len(self.items), dtype=np.int64)
        self.ranks[self._order] = np.arange(1, len(self.items) + 1)
        in_order = self.counts[self._order]
        before = np.cumsum(in_order) - in_order
        self.segments = np.empty(len(self.items), dtype=np.int64)
        # Integer arithmetic: rounding cannot move an item across a boundary.
        self.segments[self._order] = (3 * before >= self.total).astype(np.int64) + (3 * before >= 2 * self.total)

    @classmethod
    def in_training(cls, data: Dataset, match: Matching = _FOLDED) -> "Popularity":
        """Count the ground truths of a dataset's training split, once for prepared data: the counts are stored beside it."""
        file = _place(data, match)
        if file is None:
            return cls.from_conversations(data["train"], data.catalog, match)
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
            counts = np.load(file, allow_pickle=False)
            if counts.shape == (len(data.catalog),) and counts.dtype == np.int64:
                return cls(data.catalog, counts, match)
        found = cls.from_conversations(data["train"], data.catalog, match)
        with contextlib.suppress(OSError), replacing(file) as scratch, scratch.open("wb") as opened:
            np.save(opened, found.counts)
        return found

    @classmethod
    def from_conversations(
        cls, conversations: Iterable[Conversation], catalog: Catalog, match: Matching = _FOLDED
    ) -> "Popularity":
        """Count the ground truths of the training conversations.

        Conversations of other splits are skipped, which prevents leaks of the test split. Ground truths outside the catalog
        are not counted, and an item counts once a conversation.
        """
        index = ItemIndex(catalog, match)
        if isinstance(conversations, Rows):
            return cls(catalog, _counts_of(conversations, index, len(catalog)), match)
        counts = np.zeros(len(catalog), dtype=np.int64)
        for conversation in conversations:
            if conversation.split != "train":
                continue
            for at in {index.find(item) for item in conversation.ground_truth}:
                if at is not None:
                    counts[at] += 1
        return cls(catalog, counts, match)

    @cached_property
    def _lookup(self) -> "ItemIndex":
        return ItemIndex(self.items if self._catalog is None else self._catalog, self.match)

    @cached_property
    def _titles(self) -> list[str]:
        return [self.match.key(item.title) for item in self.items]

    def index(self, item: Item) -> int | None:
        """Return the index of the item in the catalog, or None (see ItemIndex)."""
        return self._lookup.find(item)

    def rank(self, item: Item) -> int | None:
        """Return the popularity rank, from 1. None for an item outside the catalog."""
        at = self.index(item)
        return None if at is None else int(self.ranks[at])

    def segment(self, item: Item) -> str | None:
        """Return "head", "mid" or "tail". None for an item outside the catalog, or if no interactions are known."""
        at = self.index(item)
        return None if at is None or not self.total else SEGMENTS[self.segments[at]]

    def recommend(self, conversation: Conversation, n: int) -> list[Item]:
        """Return the `n` most popular items with titles that the user has not seen; fewer in a small catalog.

        Raises:
            UserError: No interactions are known.
        """
        if not self.total:
            raise UserError(
                "The popularity baseline needs training conversations with ground truths in the catalog, found none. "
                "Check the dataset's train split, or leave the baseline out."
            )
        seen = self.match.seen_keys(conversation.seen)
        chosen: list[Item] = []
        for at in self._order:
            if len(chosen) >= n:
                break
            if self._titles[at] not in seen:
                chosen.append(self.items[at])
        return chosen


def _place(data: Dataset, match: Matching) -> Path | None:
    """Return the file for the counts of prepared data. None: not prepared, or not all that counts depend on is known."""
    train, known = data["train"], data.digests
    if data.folder is None or not isinstance(train, Rows) or not is_dataclass(match):
        return None
    if not train.whole or not {"catalog", "train"} <= known.keys():
        return None
    rule = type(match)
    sources = source_digests({TARGET: f"{rule.__module__}.{rule.__qualname__}"})
    key = of_value([known["catalog"], known["train"], repr(match), sources, of_code(*_CODE)])
    return data.folder / f"popularity-{key}.npy"


def _counts_of(rows: Rows, index: "ItemIndex", size: int) -> np.ndarray:
    """Return the interactions of each item in a split of prepared data, from a column of it."""
    if rows.split != "train":
        return np.zeros(size, dtype=np.int64)
    truths, lengths, numbers = rows.truths()
    places = np.full(len(truths), -1, dtype=np.int64)
    for number in np.unique(numbers):
        found = index.find(truths[number])
        places[number] = -1 if found is None else found
    row, item = np.repeat(np.arange(len(lengths)), lengths), places[numbers]
    once = np.unique((row * size + item)[item >= 0])  # an item counts once a conversation
    return np.bincount(once % size, minlength=size)


class ItemIndex:
    """Index of items in a list, under a rule for "the same item".

    Title and year must match those of an entry. If only one of the two has a year, the title must match, and only one entry
    may have this title. Of equal entries the first counts.
    """

    def __init__(self, items: Iterable[Item], match: Matching = _FOLDED) -> None:
        items = items if isinstance(items, Catalog) else list(items)
        self._catalog, self._match = items if isinstance(items, Catalog) else Catalog(items), match
        self._places: dict[Item, int] = {}
        for at, item in enumerate(items):
            self._places.setdefault(Item(*item), at)

    def find(self, item: Item) -> int | None:
        """Return the index of the item, or None."""
        entry = self._catalog.find(item, self._match)
        if entry is None:
            titled = self._catalog.titled(item[0], self._match)
            if len(titled) == 1 and (item[1] is None or titled[0].year is None):
                entry = titled[0]
        return None if entry is None else self._places[entry]
