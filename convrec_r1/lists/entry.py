"""Read the item on a line of a list, in the ways that people and models write it."""

import re
from functools import lru_cache
from typing import NamedTuple

from convrec_r1.lists.dress import unwrap
from convrec_r1.lists.item import Item, strict
from convrec_r1.lists.markers import COUNTED, NAMED, unmarked
from convrec_r1.lists.prose import MOST_WORDS, SPOKEN, is_prose, prose_words
from convrec_r1.lists.years import CENTURY, DATE, OTHER_YEAR, YEAR, bare_year


class Entry(NamedTuple):
    """A line of a list."""

    item: Item | None
    """None: the line is not an item."""
    marker: str
    """Kind of its list marker: "number", "bullet" or "" (none)."""


_PLAIN = re.compile(r"(([A-Z][\w'-]+)(?: [\w,.'&!?:-]+){0,12})(?<![,:-]) \((\d{4})\)")
"""Lines in the form that a trained policy writes, which no rule below changes."""
_DIGITS = re.compile(r"\d{4}")
_MARKING = frozenset(word.capitalize() for word in f"{COUNTED}|{NAMED}".split("|"))
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\((?!\d{4}\))[^()\s]*(?:\([^()]*\)[^()\s]*)?(?:\s\"[^\"]*\")?\)")
_TAG = re.compile(
    r"</?(?:[abipu]|em|strong|li|ul|ol|t[drh]|span|br|div|cite|h[1-6])(?:\s[^<>]{0,80})?/?>", re.IGNORECASE
)
_FIELD = re.compile(r"[\"'](?:title|name|movie|film|item)[\"']\s*:\s*(?:\"([^\"]+)\"|'([^']+)')", re.IGNORECASE)
_YEAR_FIELD = re.compile(rf"year[\"']\s*:\s*[\"']?({CENTURY})", re.IGNORECASE)
_PAIR = re.compile(rf"[\[(]\s*(?:\"([^\"]+)\"|'([^']+)')\s*,\s*[\"']?({CENTURY})[\"']?\s*[\])]")
_CELL_YEAR = re.compile(rf"[*_(]*({CENTURY})[*_)]*")
_LABEL = re.compile(  # a detail below an item: "Director: Michael Mann"
    r"[*_]*(?:(?:directors?|directed by|genres?|year|released?(?: date| year| in)?|starring|stars|cast|plot|synopsis|rating"
    r"|runtime|description|country|language|imdb|reason|authors?|note|user|system|assistant)[*_]*\s?:|why[^:(\d]{0,24}:)(?![*_]*\s*\()",
    re.IGNORECASE,
)
_YEAR_LABEL = re.compile(r"[*_]*(?:year|premiere|release)d?(?: date| year)?[*_]*", re.IGNORECASE)
_LONGEST = 20_000
"""Characters of a line that are read. A longer one has its item in front, if it has one."""


_REPEATED = 200
"""Characters of a line that may be one of many with the same text: of a catalog's items in thousands of lists."""


def parse_entry(line: str, *, year_required: bool = True) -> Entry:
    """Return the item on a line, and the kind of its list marker. Arguments as for `parse_line`."""
    return (_parse_once if len(line) <= _REPEATED else _parse)(line, year_required)


def _parse(line: str, year_required: bool) -> Entry:
    plain = _PLAIN.fullmatch(line)
    if plain is not None and plain[2] not in _MARKING and not is_prose(plain[1], "", loose=False):
        return Entry(Item(plain[1], int(plain[3])), "")
    if year_required and not _DIGITS.search(line):
        return Entry(None, "")
    if len(line) > _LONGEST and (long := strict(line)).title:
        return Entry(long, "")
    kind, text = unmarked(line if len(line) <= _LONGEST else line[:_LONGEST])
    if "|" in text and (row := _row(text)):
        text = row
    elif text[:1] in "{[(" and (item := _json(text)):
        return Entry(item, kind)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "<" in text:
        text = _TAG.sub("", text)
    found = YEAR.search(text) or OTHER_YEAR.search(text)
    if found is not None:
        item = _dated(text[: found.start()], found[1], text[found.end() :], bare=not kind)
    elif (bare := bare_year(text)) is not None:
        item = _dated(text[: bare.start()], bare["year"], bare["end"] + text[bare.end() :], bare=not kind, loose=True)
    else:
        item = None if year_required else _undated(text, bare=not kind)
    if item is not None and _LABEL.match(text):
        item = None
    return Entry(item, kind)


_parse_once = lru_cache(maxsize=1 << 16)(_parse)


def _dated(before: str, year: str, after: str, *, bare: bool, loose: bool = False) -> Item | None:
    """Return the item with a year. bare: without a list marker. loose: the year is not in parentheses."""
    if loose and (DATE.search(before) or _YEAR_LABEL.fullmatch(before.strip())):
        return None
    if bare and is_prose(before, after, loose=loose):
        return None
    title = unwrap(before.rstrip(" \t,:;|\u2013\u2014-"), after)
    return Item(title, int(year)) if title else None


def _undated(text: str, *, bare: bool) -> Item | None:
    """Return the item of a line without a year."""
    end = text.rstrip('*_ "\u201d')[-1:]
    if (
        end in ("", ":")
        or text.startswith("```")
        or (len(text.split()) > MOST_WORDS and len(_without_remark(text).split()) > MOST_WORDS)
    ):
        return None
    if bare and (prose_words(text) or SPOKEN.search(text)) and (end in ".!?" or len(text.split()) > MOST_WORDS):
        return None
    title = unwrap(_without_remark(text), "")
    return Item(title) if title and any(map(str.isalnum, title)) else None


_REMARK = re.compile(r"\s+[-\u2013\u2014]+\s+")
_EMPHASISED = re.compile(
    r"(?P<mark>\*{1,3}|__|[\"\u201c*_])(?P<title>.+?)(?:\*{1,3}|__|[\"\u201d*_])\s*(?:[:\u2013\u2014-]\s.*)?"
)


def _without_remark(line: str) -> str:
    """Return the title of an entry without a year. A subtitle (Mission: Impossible - Fallout) is short and capitalised."""
    if found := _EMPHASISED.fullmatch(line):
        return found["title"].rstrip(": ")
    title, _, rest = _REMARK.sub("\n", line, count=1).partition("\n")
    if rest and (rest[:1].islower() or len(rest.split()) > 6 or (rest.endswith(".") and len(rest.split()) > 3)):
        return title
    title, _, rest = line.partition(": ")
    return title if rest.endswith(".") and len(rest.split()) > 6 else line


def _row(text: str) -> str | None:
    """Return the title and year of a table's row as a line. None: not a row, or one without a year in a cell of its own."""
    cells = [cell.strip() for cell in text.strip("| \t").split("|")]
    if len(cells) < 2:
        return None
    dated = [bool(_CELL_YEAR.fullmatch(cell)) for cell in [*cells, ""]]
    if re.fullmatch(r"[#*_]*\d{1,3}[.):*_]*", cells[0]) and (dated[2] or not dated[1]):
        cells = cells[1:]  # its number
    years = [found[1] for cell in cells[1:] if (found := _CELL_YEAR.fullmatch(cell))]
    return f"{cells[0]} ({years[0]})" if years and not YEAR.search(cells[0]) else cells[0] if text[0] == "|" else None


def _json(text: str) -> Item | None:
    """Return the item of a line of JSON, or of a literal in a program. None: it is something else."""
    if found := _FIELD.search(text):
        year = _YEAR_FIELD.search(text)
        item = parse_entry(found[1] or found[2], year_required=False).item
        return item._replace(year=int(year[1])) if item and year else item
    found = _PAIR.match(text)
    return Item((found[1] or found[2]).strip(), int(found[3])) if found else None
