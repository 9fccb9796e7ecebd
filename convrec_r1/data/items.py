"""Items as files write them: which column is the title, which the year, and what counts as a year."""

import html
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from convrec_r1.data.faults import Notes
from convrec_r1.data.values import describe, listed, one_line, shorten, shown
from convrec_r1.lists import Item

ITEM_FORMS = '["Title", 1999], {"title": "Title", "year": 1999} or "Title (1999)"'

TITLES = (
    "title", "primarytitle", "movietitle", "filmtitle", "booktitle", "gametitle", "songtitle", "tracktitle", "itemtitle",
    "titlewithoutseries", "name", "moviename", "filmname", "bookname", "itemname", "productname", "trackname", "originaltitle",
    "titel", "titre", "titulo", "título", "titolo", "titlelabel", "movielabel", "filmlabel", "booklabel", "itemlabel",
    "movie", "film", "book", "item",
)  # fmt: skip
"""Names of a title's column, the first preferred, in small letters without spaces and signs. Of a row with several the first
that is not blank counts. Wikidata has an address in `film` and the title in `filmLabel`."""

YEARS = (
    "year", "releaseyear", "startyear", "originalpublicationyear", "publicationyear", "yearofpublication", "movieyear",
    "titleyear", "yearofrelease", "pubyear", "publishyear", "yearpublished", "yearreleased", "firstpublishyear",
    "productionyear", "releasedate", "firstairdate", "originalreleasedate", "originalpublicationdate", "publicationdate",
    "publishdate", "publisheddate", "firstpublishdate", "released", "published", "date", "jahr", "année", "annee", "año",
    "anno",
)  # fmt: skip
"""Names of a year's column, in the same form and order."""

BAD_YEARS = "years that cannot be read were taken as unknown"
REPEATED = "items are repeated"
"""Notes, each after a number."""

UNKNOWN = {
    "", "0", "0.0", "\\n", "nan", "nat", "none", "null", "n/a", "na", "<na>", "-", "--", "?", "unknown", "n.d.", "tba", "tbd",
}  # fmt: skip
"""Unknown values as tools and people write them, in lower case."""

_TITLE_YEAR = re.compile(
    r"(.*\S)\s*\(\s*(\d{4})\s*(?:[-–—]\s*(?:\d{4}|present)?\s*)?"  # noqa: RUF001
    r"(?:\b(?:tv |animated |short )?(?:film|movie|series|mini-?series|novel|book|album|song|video game)\s*)?\)",
    re.IGNORECASE,
)
_ONLY_A_YEAR = re.compile(r"\(\d{4}\)")
_NUMBER = re.compile(r"(\d{1,4})(?:\.0*)?")  # pandas writes a column of years with gaps as 1999.0
_DAY = re.compile(r"([12]\d{3})(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?:\.0*)?")
_IN_TEXT = re.compile(r"(?<![\d.])([12]\d{3})(?!\d)")
_LONGEST = 40
"""Characters of a date."""
_ENTITY = re.compile(
    r"&(?:amp|quot|lt|gt|apos|nbsp|#\d{1,6}|#x[\da-fA-F]{1,5}|[a-zA-Z](?:acute|grave|uml|circ|tilde|cedil));"
)


def plain_name(name: Any) -> str:
    """Return the name of a column or key in small letters, without spaces and signs: "Book-Title" is booktitle."""
    return "".join(filter(str.isalnum, name.casefold())) if isinstance(name, str) else ""


@lru_cache(maxsize=1024)
def columns(names: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the names of the title's and the year's columns, the preferred ones first. Either may be empty."""
    plain: dict[str, Any] = {}
    for name in names:
        plain.setdefault(plain_name(name), name)
    titles, years = ([plain[name] for name in known if name in plain] for known in (TITLES, YEARS))
    titles = titles or _alone(name for key, name in plain.items() if key.endswith(("title", "titel", "titre")))
    years = years or _alone(name for key, name in plain.items() if "year" in key)
    return tuple(titles), tuple(years)


def _alone(names: Iterable[Any]) -> list[Any]:
    found = list(names)
    return found if len(found) == 1 else []


class NoTitleError(ValueError):
    """An item whose title is blank."""


def to_item(value: Any, notes: Notes | None = None, where: str = "") -> Item:
    """Read an item in one of `ITEM_FORMS`, or an object with another name of `TITLES` and `YEARS`.

    A title of several lines becomes one line, and HTML's `&amp;` is `&`. A title that ends in a year in parentheses is read as
    `Title (Year)`, also with a year beside it: the title's is the one that people write. Any other title is kept as it is.

    Args:
        notes: counts doubtful cases, with their place `where`. A value that is no year then counts as unknown (`BAD_YEARS`).
            None: such a value is an error.
    Raises:
        ValueError: with the reason; NoTitleError for a blank title.
    """
    known = None
    if isinstance(value, str):
        title = value
    elif isinstance(value, dict):
        title, known = _fields(value)
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        title, known = value
    else:
        raise ValueError(f"an item must be {ITEM_FORMS}, found {describe(value)}.")
    if not isinstance(title, str):
        raise ValueError(f"a title must be a string, found {describe(title)}.")
    if not title.strip():
        raise NoTitleError("the title is blank.")
    if "\n" in title:
        title = one_line(title)
    if "&" in title and _ENTITY.search(title):
        title = html.unescape(title)
    year = None
    try:
        year = to_year(known)
    except ValueError as error:
        if notes is None:
            raise
        notes.add(BAD_YEARS, f"{where}: {error}")
    if title.rstrip().endswith(")") and (found := _TITLE_YEAR.fullmatch(title.strip())):
        if notes and year not in (None, int(found[2])):
            notes.add("titles have another year than the year column (the title's counts)", f"{where}: {title}, {year}")
        return Item(found[1], int(found[2]))
    return Item(title.strip() if isinstance(value, str) else title, year)


def to_titled_item(value: Any, where: str, notes: Notes | None = None) -> Item | None:
    """Read an item as `to_item` does. None, counted in `notes`: it has no title, or only a year for one."""
    try:
        item = to_item(value, notes, where)
        if not _ONLY_A_YEAR.fullmatch(item.title.strip()):  # ReDial's metadata has such a row
            return item
    except NoTitleError:
        pass
    if notes is not None:
        notes.add("rows without a title were left out", where)
    return None


def _fields(value: dict) -> tuple[Any, Any]:
    titles, years = columns(tuple(value))
    if not titles:
        raise ValueError(f"an item must be {ITEM_FORMS}, found an object with the keys {listed(value)}.")
    found = [value[name] for name in titles]
    title = next(
        (title for title in found if isinstance(title, str) and title.strip().casefold() not in ("", "\\n")), None
    )
    if title is None:
        title = next(
            (title for title in found if title is not None and title == title and not isinstance(title, str)), ""
        )
    return title, next((year for name in years if not _blank(year := value[name])), None)


def _blank(year: Any) -> bool:
    return year is None or year == 0 or year != year or (isinstance(year, str) and year.strip().casefold() in UNKNOWN)


def to_year(value: Any) -> int | None:
    """Read a year: a number, or text with one: 1995, "1995.0", "1995-12-15", "15-Dec-1995", "(1995)", "1995-1998" (the first).

    None, NaN, 0, blank strings and words for unknown (`\\N`, "N/A") are no year. Raises ValueError.
    """
    if type(value) is int and 0 < value < 10_000:  # nearly always
        return value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        text = value.strip() if isinstance(value, str) else shown(value)
        if found := _NUMBER.fullmatch(text) or _DAY.fullmatch(text):
            return int(found[1]) or None
        if _blank(value):
            return None
        if isinstance(value, str):
            if len(text) <= _LONGEST and (found := _IN_TEXT.search(text)):
                return int(found[1])
        elif 1e10 < abs(value) < 4e12:  # pandas writes dates as milliseconds
            return datetime.fromtimestamp(value / 1000, UTC).year
    elif value is None:
        return None
    raise ValueError(
        "a year must be a number of up to four digits or a date, or empty where it is not known; found "
        f"{shorten(shown(value))}."
    )


def split_title(text: str) -> Item:
    """Read `Title (Year)`. Without a year at the end, the text is the title."""
    text = text.strip()
    found = _TITLE_YEAR.fullmatch(text) if text.endswith(")") else None
    return Item(found[1], int(found[2])) if found else Item(text)


def holds_year(text: str) -> bool:
    """Return whether a text is a title with its year."""
    return _TITLE_YEAR.fullmatch(text.strip()) is not None
