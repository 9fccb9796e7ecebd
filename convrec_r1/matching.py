"""Rules for "the same item", shared by reward, evaluation, popularity, demonstrations and Stage 1 (config key `match`)."""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from convrec_r1.base.options import option
from convrec_r1.lists import Item, fold, read, title_of

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

    def distinct(self, items: Iterable[Item | tuple[str, int | None]]) -> list[Item]:
        """Return the items, each once. An item without a year is the same as one of its title with a year."""
        unique: dict[tuple[str, int | None], Item] = {}
        for item in items:
            unique.setdefault(self.item_key(item), Item(*item))
        dated = {key for key, year in unique if year is not None}
        return [item for (key, year), item in unique.items() if year is not None or key not in dated]

    def seen_keys(self, titles: Collection[str]) -> set[str]:
        """Return the keys of titles that a user has seen, and of `Title (Year)` without its year."""
        keys = {self.key(title) for title in titles}
        return keys | {self.key(title_of(title)) for title in titles if ")" in title}


@dataclass(frozen=True)
class Folded(Matching):
    """Titles are the same up to case and white space (`lists.fold`): the paper's rule."""

    year_tolerance: int = YEAR_TOLERANCE

    def key(self, title: str) -> str:
        return fold(title)


@dataclass(frozen=True)
class Normalised(Matching):
    """Titles are the same up to case, accents, punctuation, white space, an English article, and the place of an article.

    "Amelie" is "Amélie", "Spider-Man" is "Spiderman", "Matrix, The" is "The Matrix" is "Matrix", "Dolce vita, La" is "La dolce
    vita", "Schindler\u2019s List" is "Schindlers List", "Fast & Furious" is "Fast and Furious". Letters and digits of all
    scripts count: "Rocky II" and "Rocky 2" are different titles, as "Rocky" and "Rocky II" are.
    """

    year_tolerance: int = YEAR_TOLERANCE

    def key(self, title: str) -> str:
        return _normalised(title)


@dataclass(frozen=True)
class Auto(Normalised):
    """match=auto: a run replaces it by `choose_matching`. Elsewhere it is normalised."""


@dataclass
class AutoConfig:
    """match=auto"""

    _target_: str = "convrec_r1.matching.Auto"
    year_tolerance: int = option(YEAR_TOLERANCE, least=0)


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


def choose_matching(match: Any, recipe: str) -> tuple[Any, str]:
    """Replace match=auto by the options of a rule: folded, the paper's, for the paper's recipe, else normalised.

    Returns:
        The options, and a sentence that says what was chosen and why.
    """
    if not isinstance(match, AutoConfig) or match._target_ != AutoConfig._target_:
        return match, ""
    if recipe == "paper":
        return FoldedConfig(
            year_tolerance=match.year_tolerance
        ), "match: folded, as in the paper, whose recipe this is."
    chosen = NormalisedConfig(year_tolerance=match.year_tolerance)
    return chosen, f"match: normalised (recipe={recipe} is our own; the paper's is match=folded)."


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


def near_duplicates(items: Iterable[Item], match: Matching) -> list[tuple[Item, Item]]:
    """Return pairs of items that are the same under `match`, the first of the catalog in front."""
    first: dict[tuple[str, int | None], Item] = {}
    pairs = [(first.setdefault(match.item_key(item), item), item) for item in items]
    return [(one, other) for one, other in pairs if one is not other]


class Items(Protocol):
    """A catalog, as this room needs it."""

    def __contains__(self, item: Item, /) -> bool: ...
    def __iter__(self) -> Iterator[Item]: ...


def unnameable(items: Items) -> list[Item]:
    """Return the items of a catalog that no list can name: their line is not read back as themselves."""
    dated = all(item.year is not None for item in items)
    lost = []
    for item in items:
        found = read(str(item), items, year_required=dated)
        if (
            len(found) != 1
            or found[0] is None
            or (fold(found[0].title), found[0].year) != (fold(item.title), item.year)
        ):
            lost.append(item)
    return lost


def catalog_notes(items: Items, match: Matching) -> list[str]:
    """Return a sentence for each kind of item in a catalog that is matched in a way one may not expect."""
    notes = []
    if same := near_duplicates(items, match):
        examples = "; ".join(f"{one} and {other}" for one, other in same[:3])
        count = "1 item is" if len(same) == 1 else f"{len(same):,} items are"
        rule = type(match).__name__.lower() if type(match).__module__ == __name__ else type(match).__name__
        notes.append(
            f"{count} the same as another one under match={rule} ({examples}): each hits the same ground truth."
        )
    if lost := unnameable(items):
        examples = ", ".join(repr(str(item)) for item in lost[:3])
        notes.append(f"No line of a list can name {len(lost)} of the catalog's items ({examples}): they are never hit.")
    return notes


_LETTERS = str.maketrans({"ø": "o", "ł": "l", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "þ": "th", "\u0131": "i"})
_APOSTROPHES = re.compile("['\u2019\u2018\u201b\u02b9\u02bb\u02bc\u2032\uff07`\u00b4]")
_LEADING = re.compile(r"^(?:the|an?)\s+(?=\S)")
_ARTICLES = "the|an?|l[ae]s?|une?|d[eia]s|de[rnt]|eine?|el|los|il|gli|het|as|os|ett?"
_TRAILING = re.compile(rf"(.*\S)\s*,\s*({_ARTICLES}|l['\u2019])\s*(:.*)?")


def words(title: str) -> list[str]:
    """Return the words of a title without case, accents, punctuation, and without an English article at either end.

    An article after a comma is put in front: "Lord of the Rings, The: The Two Towers", "Dolce vita, La".

    Apostrophes are removed, other punctuation separates words, `&` and `+` are "and", "10,000" is one word. Empty for a title
    without letters and digits.
    """
    text = _without_accents(fold(title))
    if trailing := _TRAILING.fullmatch(text):
        text = f"{trailing[2]} {trailing[1]}{trailing[3] or ''}"
    text = _LEADING.sub("", text, count=1)
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
