"""Quality of a list without its hits: catalog items, format, repeats, seen titles."""

from collections.abc import Collection
from typing import ClassVar

import numpy as np

from convrec_r1.data.catalog import Catalog
from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric
from convrec_r1.lists import WHITESPACE, Item, lines, read
from convrec_r1.matching import Folded, Matching

_FOLDED = Folded()


class ListQuality(Metric):
    """The values of `list_quality`, for every list."""

    labels: ClassVar[Labels] = {
        "catalog/valid": Label("Lines in the catalog", "Lists", percent=True),
        "format/valid": Label("Lines in the form asked for", "Lists", percent=True),
        "format/complete": Label("Lists of exactly n lines", "Lists", percent=True),
        "list/length": Label("Lines per list", "Lists", better="none", digits=2),
        "list/duplicates": Label("Repeats per list", "Lists", better="low", digits=2),
        "list/seen": Label("Seen titles per list", "Lists", better="low", digits=2),
    }

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rows = [
            list_quality(text, conversation.seen, lists.catalog, lists.n, lists.match)
            for text, conversation in zip(lists.texts, lists.conversations, strict=True)
        ]
        return {name: np.array([row[name] for row in rows]) for name in self.labels}


def parsed_lines(text: str, catalog: Catalog) -> list[Item | None]:
    """Return each non-blank line as an item, parsed as in `reward.relevance`. None: not an item.

    A line without a year is an item only if the catalog has items without a year.
    """
    return read(text, catalog, year_required=not catalog.has_yearless)


def list_quality(
    text: str, seen: Collection[str], catalog: Catalog, n: int, match: Matching = _FOLDED
) -> dict[str, float]:
    """Return the quality of one list.

    catalog/valid    share of the lines that are catalog items
    format/valid     share of the lines that are `Title (Year)` and nothing else, or `Title` if the catalog has items without a
                     year. The reward reads more: list markers, emphasis, remarks
    format/complete  1 if the list has exactly `n` lines, otherwise 0
    list/length      number of lines
    list/duplicates  number of items (title under the rule `match`, year) that repeat an earlier line: A A A B counts 2
    list/seen        number of items with a title that the user has seen; each repeat counts again

    All lines count, also after the n-th, so that endless lists are visible. Shares of an empty list are 0.

    Args:
        text: The list as a policy wrote it.
        seen: Titles that the user has seen.
        catalog: Items that may be recommended.
        n: Recommendations asked for.
        match: Rule for "the same item".
    """
    items = parsed_lines(text, catalog)
    parsed = [item for item in items if item is not None]
    strict = sum(str(item) == line.strip(WHITESPACE) for item, line in zip(items, lines(text), strict=True))
    seen_titles = match.seen_keys(seen)
    keys = [(match.key(item.title), item.year) for item in parsed]
    in_catalog = sum(catalog.find(item, match) is not None for item in parsed)
    return {
        "catalog/valid": in_catalog / len(items) if items else 0.0,
        "format/valid": strict / len(items) if items else 0.0,
        "format/complete": float(len(items) == n),
        "list/length": float(len(items)),
        "list/duplicates": float(len(keys) - len(set(keys))),
        "list/seen": float(sum(title in seen_titles for title, _ in keys)),
    }
