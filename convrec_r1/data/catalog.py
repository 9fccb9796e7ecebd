"""The set of items that may be recommended."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.rows import encodable, one_line, read_entries, to_item
from convrec_r1.lists import Item, fold
from convrec_r1.matching import Folded, Matching

_log = logging.getLogger(__name__)
_ONLY_A_YEAR = re.compile(r"\(\d{4}\)")
_FOLDED = Folded()


class Catalog:
    """Items in a fixed order, each once. Two are the same if title (case and white space folded) and year are equal.

    An item without a year is one of its own: `(Heat, None)` is in a catalog that lists Heat without a year, not in one
    that has Heat (1995) only.
    """

    def __init__(
        self,
        items: Iterable[Item | tuple[str, int | None]],
        metadata: Mapping[Item, Iterable[str]] | None = None,
    ) -> None:
        unique: dict[tuple[str, int | None], Item] = {}
        for title, year in items:
            unique.setdefault((fold(title), year), Item(title, year))
        self._items = tuple(unique.values())
        self.metadata = {item: frozenset(metadata[item]) for item in self._items if metadata and item in metadata}
        """Tags (genres, say) of the items that have any. Empty for a dataset without metadata."""
        self._has_yearless = any(item.year is None for item in self._items)
        self._by_title: dict[Matching, dict[str, list[Item]]] = {}

    @classmethod
    def load(cls, path: str | Path) -> "Catalog":
        """Read a catalog file. The extension says which form it has.

        .csv (header with `title`, and `year` if there are years; other columns are ignored), .json (a list) and .jsonl
        (one a line) of `["Title", 1999]`, `{"title": ..., "year": ...}`, `{"name": "Title (1999)"}` or "Title (1999)",
        and .pkl (a list of `(title, year)`, the form in which Reddit-v2 is released).

        Raises UserError for a file that is missing, of another kind, malformed (it names the row) or without items.
        """
        path = Path(path)
        items, untitled = [], []
        for value, where in read_entries(path, "a catalog", "items", ("title",)):
            try:
                title, year = to_item(value)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None
            if _ONLY_A_YEAR.fullmatch(title):  # ReDial's metadata has such a row
                untitled.append(where)
                continue
            items.append(Item(one_line(encodable(title)), year))  # a pickle's strings come unread
        if untitled:
            _log.warning(
                "%s: left out %d rows with a year but no title, first %s", path.name, len(untitled), untitled[0]
            )
        if not items:
            raise UserError(f"The catalog {path} has no items.")
        return cls(items)

    @property
    def has_yearless(self) -> bool:
        """Whether some item has no year: then a line without one may still name an item."""
        return self._has_yearless

    def titled(self, title: str, match: Matching = _FOLDED) -> Sequence[Item]:
        """Return the items with this title under a rule, in catalog order."""
        index = self._by_title.get(match)
        if index is None:
            index = self._by_title[match] = {}
            for item in self._items:
                index.setdefault(match.key(item.title), []).append(item)
        return index.get(match.key(title), ())

    def find(self, item: Item | tuple[str, int | None], match: Matching = _FOLDED) -> Item | None:
        """Return the entry with this title under a rule and exactly this year, or None.

        Of several, the one with the same folded title comes first, then the first of the catalog.
        """
        title, year = item
        found = [entry for entry in self.titled(title, match) if entry.year == year]
        if len(found) > 1:
            return next((entry for entry in found if fold(entry.title) == fold(title)), found[0])
        return found[0] if found else None

    def __contains__(self, item: Item | tuple[str, int | None]) -> bool:
        return self.find(item) is not None

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Catalog({len(self)} items)"
