"""Match a teacher's titles to the catalog: teachers leave out years, give wrong ones and spell as they like."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rapidfuzz import fuzz, process

from convrec_r1.lists import Item, fold
from convrec_r1.matching import Matching, words

HOWS = ("exact", "year", "title", "fuzzy", "none")

_BLOCK_BYTES = 32 * 2**20
"""Size of a block of similarities, [B, C] float32."""
_UNDATED = 96.0
"""Least similarity if one side has no year. Chosen on GPT-3.5's answers (experiments/real_teacher_answers.py)."""


@dataclass(frozen=True)
class Matches:
    """The catalog items that M items are."""

    index: np.ndarray
    """[M] int64, place in the catalog. -1: none."""
    how: np.ndarray
    """[M] str, one of HOWS."""

    def shares(self, named: np.ndarray) -> dict[str, float]:
        """Return the share of each of HOWS among entries, given as places among the M items. Empty without entries."""
        how = self.how[named]
        return {name: float((how == name).mean()) for name in HOWS} if how.size else {}


class _Match(NamedTuple):
    at: int
    how: str


_NONE = _Match(-1, "none")


class Matcher:
    """Matches items to a catalog, with the shared rule `match` first. The first rule that holds decides:

    exact   same title under `match`, same year (or none on both sides)
    year    same title under `match` or `spelling`, years match and both are known; the nearest year
    title   the same, with no year on one side; the item with the most interactions, then the latest year
    fuzzy   similarity of the spellings, 100 (1 - insertions and deletions / length of both), at least `fuzzy`, with the same
            numbers in both and years as for `year`; at least 96 if a year is missing. The best, ties by interactions

    The title under `match` comes before another spelling. A title that the catalog has with other years only is another
    item, and has no match.
    """

    def __init__(self, catalog: Iterable[Item], popularity_counts: np.ndarray, match: Matching, fuzzy: float) -> None:
        """
        Args:
            catalog: C items in catalog order.
            popularity_counts: [C] interactions of each.
            match: the rule for "the same item"; it also decides which years match.
            fuzzy: similarity, 0 to 100. Above 100: no fuzzy matching.
        """
        self._items = [Item(*item) for item in catalog]
        self._counts = np.asarray(popularity_counts)
        if self._counts.shape != (len(self._items),):
            raise ValueError(f"{len(self._items)} items but counts of shape {self._counts.shape}")
        self._match, self._fuzzy = match, fuzzy
        self._exact: dict[tuple[str, int | None], int] = {}
        self._by_key: dict[str, list[int]] = {}
        self._by_spelling: dict[Spelling, list[int]] = {}
        for at, item in enumerate(self._items):
            self._exact.setdefault(match.item_key(item), at)
            self._by_key.setdefault(match.key(item.title), []).append(at)
            self._by_spelling.setdefault(spelling(item.title), []).append(at)
        self._spellings = list(self._by_spelling)

    def match(self, items: Sequence[Item]) -> Matches:
        """Match each item."""
        found: list[_Match] = []
        waiting: dict[Spelling, list[int]] = {}
        for at, item in enumerate(items):
            match = self._same_title(Item(*item))
            found.append(match or _NONE)
            if match is None:
                waiting.setdefault(spelling(item[0]), []).append(at)
        if waiting and self._spellings and self._fuzzy <= 100:
            for title, candidates in zip(waiting, self._similar(list(waiting)), strict=True):
                for at in waiting[title]:
                    found[at] = self._best(Item(*items[at]), candidates)
        index = np.array([match.at for match in found], dtype=np.int64)
        return Matches(index, np.array([match.how for match in found], dtype="<U5"))

    def _same_title(self, item: Item) -> _Match | None:
        """Apply the first three rules. None: the catalog does not have the title."""
        at = self._exact.get(self._match.item_key(item))
        if at is not None:
            return _Match(at, "exact")
        under_rule = self._by_key.get(self._match.key(item.title), [])
        same = list(dict.fromkeys([*under_rule, *self._by_spelling.get(spelling(item.title), [])]))
        if not same:
            return None
        agreeing = [at for at in same if self._match.years_match(item.year, self._items[at].year)]
        dated = [at for at in agreeing if item.year is not None and self._items[at].year is not None]
        if not agreeing:
            return _NONE
        best = min(dated or agreeing, key=lambda at: (self._distance(item, at), at not in under_rule, *self._rank(at)))
        return _Match(best, "year" if dated else "title")

    def _similar(self, titles: list["Spelling"]) -> Iterable[list[tuple[float, int]]]:
        """For each title: similarity and place of the catalog items with a similar title and the same numbers."""
        keys = [title.key for title in self._spellings]
        rows = max(1, _BLOCK_BYTES // (4 * len(keys)))
        for start in range(0, len(titles), rows):
            block = titles[start : start + rows]
            scores = process.cdist(
                [title.key for title in block], keys, scorer=fuzz.ratio, score_cutoff=self._fuzzy, dtype=np.float32
            )  # [B, C], 0 below the cut-off
            for title, row in zip(block, scores, strict=True):
                yield [
                    (float(row[column]), at)
                    for column in np.flatnonzero(row)
                    if self._spellings[column].numbers == title.numbers
                    for at in self._by_spelling[self._spellings[column]]
                ]

    def _best(self, item: Item, candidates: list[tuple[float, int]]) -> _Match:
        allowed = []
        for score, at in candidates:
            undated = item.year is None or self._items[at].year is None
            if self._match.years_match(item.year, self._items[at].year) and (score >= _UNDATED or not undated):
                allowed.append((-score, self._distance(item, at), *self._rank(at), at))
        return _Match(min(allowed)[-1], "fuzzy") if allowed else _NONE

    def _distance(self, item: Item, at: int) -> float:
        return self._match.year_distance(item.year, self._items[at].year)

    def _rank(self, at: int) -> tuple[float, int, int]:
        """Smallest for the most interactions, then the latest year, then the first of the catalog."""
        return -float(self._counts[at]), -(self._items[at].year or 0), at


class Spelling(NamedTuple):
    """A title for comparison."""

    key: str
    """Its words without spaces: Spider-Man is Spiderman, E.T. is ET."""
    numbers: tuple[str, ...]
    """Its words with a digit, sorted: what tells a sequel from the first film."""


_WORDS = {"pt": "part", "vol": "volume", "versus": "vs", "ep": "episode"}
_NUMERALS = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii"]
_ROMAN = {numeral: str(number) for number, numeral in enumerate(_NUMERALS, start=1)}
_NAMES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
_SPELT = {name: str(number) for number, name in enumerate(_NAMES, start=1)}
_DIVISIONS = frozenset({"part", "volume", "chapter", "episode", "book"})


def spelling(title: str) -> Spelling:
    """Normalise a title as `matching.words` does, and its numbers to digits.

    Vol., Pt. and versus are volume, part and vs. Roman numerals become digits, as do words up to thirteen in a title with
    other words (Nine and 9 are different films); single letters i, v, x only after Part, Chapter and the like, v and x also
    at the end. A title of punctuation alone is itself.
    """
    found = [_WORDS.get(word, word) for word in words(title)]
    if not found:
        return Spelling(fold(title), ())
    found = [_digits(found, at) for at in range(len(found))]
    return Spelling("".join(found), tuple(sorted(word for word in found if any(map(str.isdigit, word)))))


def _digits(found: list[str], at: int) -> str:
    word = found[at]
    if not at:
        return _SPELT.get(word, word) if len(found) > 1 else word
    if word in ("i", "v", "x"):
        if found[at - 1] in _DIVISIONS or (at == len(found) - 1 and word != "i"):
            return _ROMAN[word]
        return "vs" if word == "v" else word
    return _ROMAN.get(word) or _SPELT.get(word, word)
