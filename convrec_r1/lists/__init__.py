"""Parse and format recommendation lists: one `Title (Year)` per line. Parsing is lenient, formatting is strict.

A line that people would read as an item is one: list markers, emphasis, quotes, brackets, links, table rows and remarks are
taken off, and the year may be written in several ways (docs/data.md). Prose is no item. `read` knows the catalog as well: a
line that is an item of the catalog to the letter is that item, in any form.
"""

from collections.abc import Container

from convrec_r1.lists.entry import Entry, parse_entry
from convrec_r1.lists.item import WHITESPACE, Item, fold, format, strict, title_of
from convrec_r1.lists.markers import unmarked
from convrec_r1.lists.thinking import strip_thoughts, thought_mark, thoughts

__all__ = [
    "WHITESPACE",
    "Entry",
    "Item",
    "fold",
    "format",
    "lines",
    "parse",
    "parse_entry",
    "parse_line",
    "read",
    "strip_thoughts",
    "thought_mark",
    "thoughts",
    "title_of",
]


def lines(text: str) -> list[str]:
    """Return the non-blank lines of a list, without thoughts.

    Only `\\n` ends a line, as in `rl.segment_ranks`: line k is rank k.
    """
    return [line for line in strip_thoughts(text).split("\n") if line.strip(WHITESPACE)]


def parse(text: str, *, year_required: bool = True) -> list[Item]:
    """Return the items of a list in order. Lines that are not items (headings, remarks) are skipped."""
    items = (parse_line(line, year_required=year_required) for line in lines(text))
    return [item for item in items if item is not None]


def read(text: str, known: Container[Item], *, year_required: bool = True) -> list[Item | None]:
    """Return each line of a list as an item. None: the line is not an item.

    Args:
        known: Catalog. A line that is one of its items, to the letter or after its list marker, is that item.
        year_required: A line without a year is not an item. False for catalogs with items that have no year.
    """
    return [_read(line, known, year_required) for line in lines(text)]


def parse_line(line: str, *, year_required: bool = True) -> Item | None:
    """Return the item on a line, or None if there is none.

    year_required: a line without a year is not an item. False for catalogs without years.
    """
    return parse_entry(line, year_required=year_required).item


def _read(line: str, known: Container[Item], year_required: bool) -> Item | None:
    text = line.strip(WHITESPACE)
    item = _named(text, known, year_required)
    if item is None and (rest := unmarked(text)[1]) != text:
        item = _named(rest, known, year_required)
    return item or parse_line(text, year_required=year_required)


def _named(text: str, known: Container[Item], year_required: bool) -> Item | None:
    item = strict(text)
    if item.title and item in known:
        return item
    item = Item(text)
    return item if not year_required and item in known else None
