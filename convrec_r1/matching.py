"""Rules for "the same item", shared by reward, evaluation, popularity, demonstrations and Stage 1 (config key `match`)."""

import re
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from convrec_r1.base.options import option
from convrec_r1.lists import Item, fold

YEAR_TOLERANCE = 2
"""Default difference of years that still match: the paper's value."""


class Matching(ABC):
    """A rule for "the same item". Your own rule inherits from this class and defines `key`.

    Two items are the same if their titles have the same key and their years match. A rule must be hashable (a catalog has an
    index for each rule), so a dataclass must be frozen. Its config is `_target_` and the keyword arguments of the class.
    """

    year_tolerance: int = YEAR_TOLERANCE
    """Largest difference of years that still match."""

    @abstractmethod
    def key(self, title: str) -> str:
        """Return the key of a title. Two titles are the same if their keys are equal."""

    def years_match(self, a: int | None, b: int | None) -> bool:
        """Return whether the years differ by at most `year_tolerance`. A missing year matches any."""
        return self.year_distance(a, b) <= self.year_tolerance

    def year_distance(self, a: int | None, b: int | None) -> float:
        """Return the difference in years, 0 if one is missing. Of several matches the nearest is used."""
        return 0.0 if a is None or b is None else float(abs(a - b))

    def item_key(self, item: Item | tuple[str, int | None]) -> tuple[str, int | None]:
        """Return (key of the title, year): equal for two entries of the same catalog item."""
        return self.key(item[0]), item[1]


@dataclass(frozen=True)
class Folded(Matching):
    """Titles are the same up to case and white space (`lists.fold`): the paper's rule."""

    year_tolerance: int = YEAR_TOLERANCE

    def key(self, title: str) -> str:
        return fold(title)


@dataclass(frozen=True)
class Normalised(Matching):
    """Titles are the same up to case, accents, punctuation, white space and one English article at either end.

    "Amelie" is "Amélie", "Spider-Man" is "Spiderman", "Matrix, The" is "The Matrix", "Schindler\u2019s List" is "Schindlers
    List", "Fast & Furious" is "Fast and Furious". Letters and digits of all scripts count.
    """

    year_tolerance: int = YEAR_TOLERANCE

    def key(self, title: str) -> str:
        return _normalised(title)


@dataclass
class FoldedConfig:
    """match=folded"""

    _target_: str = "convrec_r1.matching.Folded"
    year_tolerance: int = option(YEAR_TOLERANCE, least=0)


@dataclass
class NormalisedConfig:
    """match=normalised"""

    _target_: str = "convrec_r1.matching.Normalised"
    year_tolerance: int = option(YEAR_TOLERANCE, least=0)


def as_matching(match: str | Matching, year_tolerance: int = YEAR_TOLERANCE) -> Matching:
    """Return the rule called "folded" or "normalised", or `match` itself if it is a rule (with its own tolerance).

    Raises ValueError for another name.
    """
    if isinstance(match, Matching):
        return match
    if match == "folded":
        return Folded(year_tolerance)
    if match == "normalised":
        return Normalised(year_tolerance)
    raise ValueError(f'match must be "folded", "normalised" or a Matching, found {match!r}')


_LETTERS = str.maketrans({"ø": "o", "ł": "l", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i"})
_APOSTROPHES = re.compile("['\u2019\u2018\u201b\u02b9\u02bb\u02bc\u2032\uff07`\u00b4]")
_LEADING = re.compile(r"^(?:the|an?)\s+(?=\S)")
_TRAILING = re.compile(r"(.*\S)\s*,\s*(?:the|an?)")


def words(title: str) -> list[str]:
    """Return the words of a title without case, accents, punctuation, and without an article at either end.

    Apostrophes are removed, other punctuation separates words, `&` and `+` are "and", "10,000" is one word. Empty for a title
    without letters and digits.
    """
    text = _LEADING.sub("", _without_accents(fold(title)), count=1)
    if trailing := _TRAILING.fullmatch(text):
        text = trailing[1]
    text = _APOSTROPHES.sub("", text).replace("&", " and ").replace("+", " and ")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return "".join(" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in text).split()


@lru_cache(maxsize=2**17)
def _normalised(title: str) -> str:
    return "".join(words(title)) or fold(title)


def _without_accents(text: str) -> str:
    """Decompose compatibility forms and drop Latin accents. Marks of other scripts are composed again and stay."""
    letters = []
    for letter in text:
        form = unicodedata.decomposition(letter)
        # 8½ is 8 1/2, not 81/2, and Alien³ is Alien 3.
        letters.append(f" {letter}" if form.startswith(("<fraction>", "<super>")) else letter)
    text = unicodedata.normalize("NFKD", "".join(letters)).casefold()
    text = "".join(letter for letter in text if not "\u0300" <= letter <= "\u036f")
    return fold(unicodedata.normalize("NFC", text).translate(_LETTERS))
