"""Quality of a list without its hits: catalog items, format, repeats, seen titles."""

from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np

from convrec_r1.data.catalog import Catalog
from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric
from convrec_r1.lists import Item, lines, parse_line
from convrec_r1.matching import Folded, Matching

_FOLDED = Folded()


class ListQuality(Metric):
    """The values of `list_quality`, for every list."""

    labels: ClassVar[Labels] = {
        "catalog/valid": Label("Lines in the catalog", "Lists", percent=True),
        "format/valid": Label("Lines that parse", "Lists", percent=True),
        "format/complete": Label("Lists of exactly n lines", "Lists", percent=True),
        "list/length": Label("Lines per list", "Lists", better="none", digits=2),
        "list/duplicates": Label("Repeats per list", "Lists", better="low", digits=2),
        "list/seen": Label("Seen titles per list", "Lists", better="low", digits=2),
    }

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rows = [
            list_quality(items, conversation.seen, lists.catalog, lists.n, lists.match)
            for items, conversation in zip(lists.lines, lists.conversations, strict=True)
        ]
        return {name: np.array([row[name] for row in rows]) for name in self.labels}


def parsed_lines(text: str, catalog: Catalog) -> list[Item | None]:
    """Return each non-blank line as an item, parsed as in `reward.relevance`. None: not an item.

    A line without a year is an item only if the catalog has items without a year.
    """
    year_required = not catalog.has_yearless
    return [parse_line(line, year_required=year_required) for line in lines(text)]


def list_quality(
    items: Sequence[Item | None], seen: Collection[str], catalog: Catalog, n: int, match: Matching = _FOLDED
) -> dict[str, float]:
    """Return the quality of one list.

    catalog/valid    share of the lines that are catalog items
    format/valid     share of the lines that parse
    format/complete  1 if the list has exactly `n` lines, otherwise 0
    list/length      number of lines
    list/duplicates  number of items (title under the rule `match`, year) that repeat an earlier line: A A A B counts 2
    list/seen        number of items with a title that the user has seen; each repeat counts again

    All lines count, also after the n-th, so that endless lists are visible. Shares of an empty list are 0.

    Args:
        items: Non-blank lines. None: not an item.
        seen: Titles that the user has seen.
        catalog: Items that may be recommended.
        n: Recommendations asked for.
        match: Rule for "the same item".
    """
    parsed = [item for item in items if item is not None]
    seen_titles = {match.key(title) for title in seen}
    keys = [(match.key(item.title), item.year) for item in parsed]
    in_catalog = sum(catalog.find(item, match) is not None for item in parsed)
    return {
        "catalog/valid": in_catalog / len(items) if items else 0.0,
        "format/valid": len(parsed) / len(items) if items else 0.0,
        "format/complete": float(len(items) == n),
        "list/length": float(len(items)),
        "list/duplicates": float(len(keys) - len(set(keys))),
        "list/seen": float(sum(title in seen_titles for title, _ in keys)),
    }
