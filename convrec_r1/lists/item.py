"""The item, and its one written form: `Title (Year)`."""

import re
from collections.abc import Iterable
from functools import lru_cache
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
_STRICT = re.compile(r"\s*(.*\S)\s*\((\d{4})\)\s*")


def format(items: Iterable[Item]) -> str:
    """Return items as text: one item per line, without a newline at the end."""
    return "\n".join(str(Item(*item)) for item in items)


@lru_cache(maxsize=2**16)
def fold(title: str) -> str:
    """Return a title with case and white space folded, for comparison."""
    return " ".join(title.casefold().split())


def title_of(text: str) -> str:
    """Return the title of `Title (Year)`, or any other text as it is."""
    return strict(text).title or text


def strict(line: str) -> Item:
    """Return the item of `Title (Year)` and nothing else. The title is empty for any other line."""
    found = _STRICT.fullmatch(line)
    return Item(found[1], int(found[2])) if found else Item("")
