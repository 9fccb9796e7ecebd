"""The set of items that may be recommended."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.data.entries import read_entries
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.items import BAD_YEARS, REPEATED, columns, plain_name, to_titled_item
from convrec_r1.data.values import encodable, listed, one_line
from convrec_r1.lists import Item, fold
from convrec_r1.matching import Folded, Matching

_log = logging.getLogger(__name__)
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
        """Read a catalog file: a table, JSON, JSON Lines, Parquet or a pickle (forms: `data.entries`; columns: `data.items`).

        What is left out or doubtful is counted and logged in one line: rows without a title, repeated items, years that are
        none, columns that are not read, lines in another encoding.

        Raises:
            UserError: a file that is missing, of another kind, malformed (the first ten rows are named), without items, or
                whose years are mostly none.
        """
        path = Path(path)
        notes, faults = Notes(), Faults()
        items = list(read_items(path, notes, faults))
        faults.check()
        catalog = cls(item for item, _ in items)
        known: set[tuple[str, int | None]] = set()
        for item, where in items if len(catalog) < len(items) else ():
            if (name := (fold(item.title), item.year)) in known:
                notes.add(REPEATED, f"{where}: {item}")
            known.add(name)
        if not items:
            raise UserError(f"The catalog {path} has no items{f' ({notes})' if str(notes) else ''}.")
        notes.warn(_log, f"{path.name}: {len(catalog):,} items;")
        return catalog

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
        entries = self.titled(title, match)
        if len(entries) < 2:
            return entries[0] if entries and entries[0].year == year else None
        found = [entry for entry in entries if entry.year == year]
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


def read_items(path: Path, notes: Notes, faults: Faults) -> Iterator[tuple[Item, str]]:
    """Yield (item, place) for the entries of a catalog file. See `Catalog.load`."""
    dated, keys, read = 0, set(), set()
    for value, where in read_entries(path, "a catalog", notes):
        try:
            item = to_titled_item(value, where, notes)
        except ValueError as error:
            faults.add(f"{where}: {error}")
            continue
        if isinstance(value, dict):
            keys |= value.keys()
            read |= {name for names in columns(tuple(value)) for name in names}
        if item is not None:
            dated += item.year is not None
            yield Item(one_line(encodable(item.title)), item.year), where  # a pickle's strings come unread
    if (bad := notes.counts[BAD_YEARS]) > dated:
        raise UserError(f"{notes.first[BAD_YEARS]} In total {bad:,} of {bad + dated:,} years of the file are none.")
    if ignored := {key for key in keys - read if plain_name(key)}:
        notes.add(f"columns are not read: {listed(sorted(map(str, ignored)))}", number=len(ignored))
