"""Search over the titles of a catalog."""

import re
from bisect import bisect_left
from collections.abc import Iterable

from convrec_r1.lists import Item, fold

_WORD = re.compile(r"\b\w")


class Titles:
    """The titles of items, found by the beginning of any of their words. Case and white space do not count."""

    def __init__(self, items: Iterable[Item]) -> None:
        entries = []
        for item in items:
            title = fold(item.title)
            starts = {0, *(found.start() for found in _WORD.finditer(title))}
            entries += [(title[start:], start > 0, item) for start in starts]
        entries.sort(key=lambda entry: (entry[0], entry[1], entry[2].year or 0))
        self._keys = [key for key, *_ in entries]
        self._entries = entries

    def find(self, query: str, limit: int) -> tuple[list[Item], bool]:
        """Return at most `limit` items, those whose title itself begins with the query first; and whether there are others."""
        wanted = fold(query)
        lo = bisect_left(self._keys, wanted)
        hi = bisect_left(self._keys, wanted + "\U0010ffff")
        # As many words as could be needed: an item may be named by several of its words.
        among = self._entries[lo : min(hi, lo + 50 * limit)] if wanted else self._entries[: 50 * limit]
        ordered = sorted(among, key=lambda entry: entry[1])
        found = list(dict.fromkeys(item for *_, item in ordered))
        return found[:limit], len(found) > limit
