"""Parse and format recommendation lists: one `Title (Year)` per line. Parsing is lenient, formatting is strict."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Item(NamedTuple):
    """A catalog item. `year` is None if the domain has no years, or if a list leaves the year out."""

    title: str
    year: int | None = None

    def __str__(self) -> str:
        return self.title if self.year is None else f"{self.title} ({self.year})"


# Only ASCII white space counts as blank, here and in the policy's token tables. Each character is one byte, so text and
# tokens agree for every byte-level tokenizer.
WHITESPACE = " \t\r\n\f\v"

_MARKER = re.compile(r"^(?:[-*\u2022\u00b7\u2013\u2014]|\d{1,3}[.)]|\(\d{1,2}\))\s+")
_YEAR = re.compile(r"\((\d{4})\)")
_MARKS = [("**", "**"), ("__", "__"), *((m, m) for m in "*_`\"'"), ("\u201c", "\u201d"), ("\u2018", "\u2019")]
_LAYERS = 8
_THOUGHTS = re.compile(
    r"\A.*</(?:think|thinking|thought|reasoning)>|\A\s*<(?:think|thinking|thought|reasoning)>.*\Z",
    re.DOTALL | re.IGNORECASE,
)


def lines(text: str) -> list[str]:
    """Return the non-blank lines of a list. Only `\\n` ends a line, as in `rl.segment_ranks`: line k is rank k."""
    return [line for line in text.split("\n") if line.strip(WHITESPACE)]


def strip_thoughts(text: str) -> str:
    """Return a text without the model's thoughts: all up to the last `</think>`. Empty if it broke off in a thought."""
    return _THOUGHTS.sub("", text, count=1)


def parse_line(line: str, *, year_required: bool = True) -> Item | None:
    """Return the item on a line, or None if there is none.

    Removes a list marker (`1.`, `2)`, `-`, `*`), quotes and Markdown emphasis around the title or the whole entry, and
    everything after the first four-digit year in parentheses.

    year_required: a line without such a year is not an item. False for catalogs without years.
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
    """Return the items of a list in order. Lines that are not items (headings, remarks) are skipped."""
    items = (parse_line(line, year_required=year_required) for line in lines(text))
    return [item for item in items if item is not None]


def format(items: Iterable[Item]) -> str:
    """Return items as text: one item per line, without a newline at the end."""
    return "\n".join(str(Item(*item)) for item in items)


def fold(title: str) -> str:
    """Return a title with case and white space folded, for comparison."""
    return " ".join(title.casefold().split())


def _unwrap(title: str, behind: str) -> str:
    """Remove quotes and emphasis that enclose the title, or that open before it and close in `behind`, after the year.

    A mark that closes inside the title ("Crocodile" Dundee) or never closes ('Tis Autumn, *batteries not included) is part of
    the title. The number of layers is bounded, so that a line of a million stars costs little time.
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
