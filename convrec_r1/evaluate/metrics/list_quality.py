"""Form of a list, apart from its hits: is it in the catalog, well formed, free of repeats and of seen titles?"""

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
    """Return each non-blank line as an item, None where it is not one, as `reward.relevance` reads them.

    A line without a year is an item only if the catalog has items without.
    """
    year_required = not catalog.has_yearless
    return [parse_line(line, year_required=year_required) for line in lines(text)]


def list_quality(
    items: Sequence[Item | None], seen: Collection[str], catalog: Catalog, n: int, match: Matching = _FOLDED
) -> dict[str, float]:
    """Return the quality of one list of parsed lines (None: a line that is not an item), of which `n` were asked for.

    catalog/valid    share of the lines that are items of the catalog; a line that does not parse is not
    format/valid     share of the lines that parse
    format/complete  1 if the list has exactly `n` lines, whatever they say, otherwise 0
    list/length      number of lines
    list/duplicates  number of items (title under the rule `match`, year) that an earlier line has named: A A A B counts 2
    list/seen        number of items whose title the user has seen; each repeat counts again

    All lines count, those past the n-th too: a list that never ends is a fault to be seen. Blank lines are no lines.
    An empty list has shares of 0.
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
