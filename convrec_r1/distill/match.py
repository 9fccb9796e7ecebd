"""Titles that a teacher names -> places in the catalog: teachers leave out the year, give a wrong one, spell as they please."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rapidfuzz import fuzz, process

from convrec_r1.distill.config import MatchConfig
from convrec_r1.lists import Item, fold

HOWS = ("exact", "year", "title", "fuzzy", "none")

_BLOCK_BYTES = 32 * 2**20
"""Of the similarities that are held at a time, [B, C] float32."""

_UNDATED = 96.0
"""Similarity that is asked for at least where one side has no year to speak against a match; set on GPT-3.5's answers
(experiments/real_teacher_answers.py)."""


@dataclass(frozen=True)
class Matches:
    """What M items are in the catalog."""

    index: np.ndarray
    """[M] int64, place in the catalog; -1: none."""
    how: np.ndarray
    """[M] str, one of HOWS."""
    score: np.ndarray
    """[M] float32, similarity of the titles: 100 where they are the same, 0 where there is no match."""

    def __len__(self) -> int:
        return len(self.index)

    def shares(self, named: np.ndarray) -> dict[str, float]:
        """Of entries that name these items (places among the M), the share that was matched each way; {} of none."""
        how = self.how[named]
        return {name: float((how == name).mean()) for name in HOWS} if how.size else {}


class Matcher:
    """Matches items with those of a catalog.

    The first rule that holds decides:

    exact   title (case and white space folded) and year agree; two items without years agree too
    year    same title once normalised, both years known and at most `cfg.year_tolerance` apart; the nearest
    title   same title once normalised, and no year on one side; of several the one with the most interactions, then the
            latest year
    fuzzy   similarity of the normalised titles, 100 (1 - insertions and deletions / length of both), at least `cfg.fuzzy`, the
            same numbers in both, years as for `year`; where a year is missing, similarity of at least 96 too. The best one,
            ties by interactions. Above 100, `cfg.fuzzy` turns the rule off.

    Among the same after normalising, an item with the very title as folded goes before one with another article or spelling. A
    title that the catalog has with other years only is another film, and none.
    """

    def __init__(self, catalog: Iterable[Item], popularity_counts: np.ndarray, cfg: MatchConfig) -> None:
        """catalog: C items in catalog order.  popularity_counts: [C] interactions of each, which decide ties."""
        self._items = [Item(*item) for item in catalog]
        self._counts = np.asarray(popularity_counts)
        if self._counts.shape != (len(self._items),):
            raise ValueError(f"{len(self._items)} items but counts of shape {self._counts.shape}")
        self._cfg = cfg
        self._exact: dict[tuple[str, int | None], int] = {}
        self._by_title: dict[str, list[int]] = {}
        self._numbers: dict[str, tuple[str, ...]] = {}
        for at, (title, year) in enumerate(self._items):
            self._exact.setdefault((fold(title), year), at)
            normal = normalise(title)
            self._by_title.setdefault(normal.key, []).append(at)
            self._numbers.setdefault(normal.key, normal.numbers)
        self._keys = list(self._by_title)

    def match(self, items: Sequence[Item]) -> Matches:
        """Each item's match. Memory beside the answer: 32 MiB of similarities and what the unmatched titles take."""
        found: list[_Match] = []
        waiting: dict[_Normal, list[int]] = {}
        for at, item in enumerate(items):
            item = Item(*item)
            match, normal = self._same_title(item)
            found.append(match)
            if normal is not None:
                waiting.setdefault(normal, []).append(at)
        if waiting and self._keys and self._cfg.fuzzy <= 100:
            titles = list(waiting)
            for normal, candidates in zip(titles, self._similar(titles), strict=True):
                for at in waiting[normal]:
                    found[at] = self._best(Item(*items[at]), candidates)
        return Matches(
            np.array([match.at for match in found], dtype=np.int64),
            np.array([match.how for match in found], dtype="<U5"),
            np.array([match.score for match in found], dtype=np.float32),
        )

    def _same_title(self, item: Item) -> tuple["_Match", "_Normal | None"]:
        """The match by the first three rules; where none holds and the catalog lacks the title, the title to look for."""
        title = fold(item.title)
        at = self._exact.get((title, item.year))
        if at is not None:
            return _Match(at, "exact", 100.0), None
        normal = normalise(item.title)
        same = self._by_title.get(normal.key)
        if same is None:
            return _NONE, normal
        agreeing = [at for at in same if self._years_apart(item, at) is not None]
        dated = [at for at in agreeing if item.year is not None and self._items[at].year is not None]
        spelt = {at: fold(self._items[at].title) != title for at in agreeing}
        if dated:
            best = min(dated, key=lambda at: (self._years_apart(item, at), spelt[at], *self._rank(at)))
            return _Match(best, "year", 100.0), None
        if agreeing:
            return _Match(min(agreeing, key=lambda at: (spelt[at], *self._rank(at))), "title", 100.0), None
        return _NONE, None

    def _similar(self, titles: list["_Normal"]) -> Iterable[list[tuple[float, int]]]:
        """For each title the catalog's items with a similar one and the same numbers, with the similarity."""
        rows = max(1, _BLOCK_BYTES // (4 * len(self._keys)))
        for start in range(0, len(titles), rows):
            block = titles[start : start + rows]
            scores = process.cdist(
                [title.key for title in block], self._keys, scorer=fuzz.ratio, score_cutoff=self._cfg.fuzzy,
                dtype=np.float32,
            )  # [B, C], 0 below the cut-off  # fmt: skip
            for title, row in zip(block, scores, strict=True):
                yield [
                    (float(row[column]), at)
                    for column in np.flatnonzero(row)
                    if self._numbers[self._keys[column]] == title.numbers
                    for at in self._by_title[self._keys[column]]
                ]

    def _best(self, item: Item, candidates: list[tuple[float, int]]) -> "_Match":
        allowed = []
        for score, at in candidates:
            apart = self._years_apart(item, at)
            undated = item.year is None or self._items[at].year is None
            if apart is not None and (score >= _UNDATED or not undated):
                allowed.append((-score, apart, *self._rank(at), at))
        if not allowed:
            return _NONE
        best = min(allowed)
        return _Match(best[-1], "fuzzy", -best[0])

    def _years_apart(self, item: Item, at: int) -> int | None:
        """0 where a year is missing, None where they disagree."""
        year = self._items[at].year
        if item.year is None or year is None:
            return 0
        apart = abs(item.year - year)
        return apart if apart <= self._cfg.year_tolerance else None

    def _rank(self, at: int) -> tuple[float, int, int]:
        """Smallest for the most interactions, then the latest year, then the first of the catalog."""
        return -float(self._counts[at]), -(self._items[at].year or 0), at


class _Match(NamedTuple):
    at: int
    how: str
    score: float


_NONE = _Match(-1, "none", 0.0)


class _Normal(NamedTuple):
    key: str
    """The title as it is compared, without spaces: Spider-Man is Spiderman, E.T. is ET."""
    numbers: tuple[str, ...]
    """Its words with a digit, sorted: what tells a sequel from the film before it."""


_LETTERS = str.maketrans({"ø": "o", "ł": "l", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i"})
_APOSTROPHES = re.compile("['\u2019\u2018\u02bb\u02bc`\u00b4]")
_LEADING = re.compile(r"^(?:the|an?)\s+(?=\S)")
_TRAILING = re.compile(r"(.*\S)\s*,\s*(?:the|an?)")
_WORDS = {"pt": "part", "vol": "volume", "versus": "vs", "ep": "episode"}
_ROMAN = {
    "ii": "2",
    "iii": "3",
    "iv": "4",
    "vi": "6",
    "vii": "7",
    "viii": "8",
    "ix": "9",
    "xi": "11",
    "xii": "12",
    "xiii": "13",
}
_ROMAN_LETTERS = {"i": "1", "v": "5", "x": "10"}
_SPELT = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"],
        map(str, range(1, 14)),
        strict=True,
    )
)
_DIVISIONS = frozenset({"part", "volume", "chapter", "episode", "book"})


def normalise(title: str) -> _Normal:
    """A title for comparison: no case, accents, punctuation, spaces or English article; numbers in digits.

    `&` and `+` are "and", v and versus are vs, Vol. and Pt. are whole words. Roman numerals become digits, as do words up to
    thirteen in a title that has others (Nine and 9 are different films); single letters i, v, x only behind Part, Chapter and
    the like, v and x also at the end. Letters of any script stay. A title of punctuation alone is itself.
    """
    text = _LEADING.sub("", _plain(title), count=1)
    if trailing := _TRAILING.fullmatch(text):
        text = trailing[1]
    text = _APOSTROPHES.sub("", text).replace("&", " and ").replace("+", " and ")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    words = "".join(" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in text).split()
    if not words:
        return _Normal(fold(title), ())
    words = [_WORDS.get(word, word) for word in words]
    words = [_digits(words, at) for at in range(len(words))]
    return _Normal("".join(words), tuple(sorted(word for word in words if any(map(str.isdigit, word)))))


def _plain(title: str) -> str:
    """Compatibility forms decomposed and Latin accents dropped; what other scripts compose from marks is composed again."""
    letters = []
    for letter in title:
        form = unicodedata.decomposition(letter)
        # 8½ is 8 1/2, not 81/2, and Alien³ is Alien 3.
        letters.append(f" {letter}" if form.startswith(("<fraction>", "<super>")) else letter)
    text = unicodedata.normalize("NFKD", "".join(letters)).casefold()
    text = "".join(letter for letter in text if not "\u0300" <= letter <= "\u036f")
    return fold(unicodedata.normalize("NFC", text).translate(_LETTERS))


def _digits(words: list[str], at: int) -> str:
    word, before = words[at], words[at - 1] if at else ""
    last = at == len(words) - 1
    if not at:
        return _SPELT.get(word, word) if len(words) > 1 else word
    if word in _ROMAN_LETTERS:
        if before in _DIVISIONS or (last and word != "i"):
            return _ROMAN_LETTERS[word]
        return "vs" if word == "v" else word
    return _ROMAN.get(word) or _SPELT.get(word, word)
