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

_MARKER = re.compile(r"^(?:[-*\u2022\u00b7\u2013\u2014]|\(?\d{1,3}[.)](?!\d))\s+")
_YEAR = re.compile(r"\s*\((\d{4})\)")
_WRAPPERS = ("**", "__", "*", "_", "`", '"', "'", "\u201c", "\u201d")


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
    title = _unwrap(line[: found.start()] if found else line)
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


def _unwrap(title: str) -> str:
    """Take off quotes and emphasis. An opening mark may have its closing one behind the year: **Title (Year)**."""
    title = title.strip()
    changed = True
    while changed:
        changed = False
        for mark in _WRAPPERS:
            if not title.startswith(mark) or len(title) <= len(mark):
                continue
            closed = title.endswith(mark)
            if closed and len(title) > 2 * len(mark):
                body = title[len(mark) : -len(mark)]
            # A lone opening mark has its closing one behind the year. One that is closed further on belongs to the
            # title ("Crocodile" Dundee), and so does an apostrophe ('Tis Autumn).
            elif title.count(mark) == 1 and mark != "'":
                body = title[len(mark) :]
            else:
                continue
            title, changed = body.strip(), True
            break
    return title
