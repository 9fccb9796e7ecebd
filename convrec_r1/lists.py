"""Recommendation text <-> items: one `Title (Year)` a line, read leniently, written strictly."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Item(NamedTuple):
    """A catalog item. `year` is None where a domain has none (or a list left it out)."""

    title: str
    year: int | None = None

    def __str__(self) -> str:
        return self.title if self.year is None else f"{self.title} ({self.year})"


# Only ASCII white space counts as blank, in the text as in the token tables of the policy: each such character is one
# byte, so a token is blank exactly where its text is, however a byte-level tokenizer cuts the line.
WHITESPACE = " \t\r\n\f\v"

_MARKER = re.compile(r"^(?:[-*\u2022\u00b7\u2013\u2014]|\d{1,3}[.)]|\(\d{1,2}\))\s+")
_YEAR = re.compile(r"\((\d{4})\)")
_MARKS = [("**", "**"), ("__", "__"), *((m, m) for m in "*_`\"'"), ("\u201c", "\u201d"), ("\u2018", "\u2019")]
_LAYERS = 8


def lines(text: str) -> list[str]:
    """The non-blank lines of a list. Only `\\n` ends a line, as in `rl.segment_ranks`: k-th line, k-th rank."""
    return [line for line in text.split("\n") if line.strip(WHITESPACE)]


def parse_line(line: str, *, year_required: bool = True) -> Item | None:
    """One line as an item, or None.

    Takes off a list marker (`1.`, `2)`, `-`, `*`), emphasis and quotes around the title or the whole entry, and
    anything after the first four-digit year in parentheses. A line without such a year is not an item, unless
    `year_required` is False (catalogs without years).
    """
    line = _MARKER.sub("", line.strip(), count=1).strip()
    found = _YEAR.search(line)
    if found is None and year_required:
        return None
    title = (
        _unwrap(line[: found.start()], line[found.end() : found.end() + 2 * _LAYERS]) if found else _unwrap(line, "")
    )
    if not title:
        return None
    return Item(title, int(found.group(1)) if found else None)


def parse(text: str, *, year_required: bool = True) -> list[Item]:
    """All lines that are items, in order; lines that are not (headers, remarks) are dropped."""
    items = (parse_line(line, year_required=year_required) for line in lines(text))
    return [item for item in items if item is not None]


def format(items: Iterable[Item]) -> str:
    """The list as a policy is taught to write it: one item a line, no newline after the last."""
    return "\n".join(str(Item(*item)) for item in items)


def fold(title: str) -> str:
    """A title for comparison: case and white space folded."""
    return " ".join(title.casefold().split())


def _unwrap(title: str, behind: str) -> str:
    """Take off quotes and emphasis around the title, or opened before it and closed `behind` the year.

    A mark that is closed inside the title belongs to it ("Crocodile" Dundee), and so does one that nothing closes
    ('Tis Autumn, *batteries not included). A bounded number of layers, so that a line of a million stars costs little.
    """
    title = title.strip()
    for _ in range(_LAYERS):
        for opening, closing in _MARKS:
            if not title.startswith(opening):
                continue
            if title.endswith(closing) and len(title) > len(opening) + len(closing):
                title = title[len(opening) : -len(closing)].strip()
            elif closing in behind and len(title) > len(opening):
                title = title[len(opening) :].strip()
            else:
                continue
            break
        else:
            return title
    return title
