"""Read a list while it is written: tokens -> recommendations, as soon as their lines are complete."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convrec_r1 import lists
from convrec_r1.data.catalog import Catalog
from convrec_r1.lists import Item
from convrec_r1.matching import Matching
from convrec_r1.serve.request import Fields, Recommendation

if TYPE_CHECKING:
    from convrec_r1.rollout.lines import LineCounter


@dataclass(frozen=True)
class Known:
    """The items that a policy may recommend, and when two are the same."""

    catalog: Catalog | None
    match: Matching
    fields: Mapping[Item, Fields] = field(default_factory=dict)

    def item(self, line: str) -> tuple[Item, Item | None]:
        """Return a line as an item, and the item of the catalog that it names. A line that is no item is all title."""
        if self.catalog is None:
            item = lists.parse_line(line, year_required=False)
            return item or Item(line.strip(lists.WHITESPACE)), None
        (read,) = lists.read(line, self.catalog, year_required=not self.catalog.has_yearless)
        if read is None:
            return lists.parse_line(line, year_required=False) or Item(line.strip(lists.WHITESPACE)), None
        return read, self.catalog.find(read, self.match)


@dataclass(frozen=True)
class Sieve:
    """What a list without the constraint may hold: the same as with it, but applied to its lines when they are written."""

    seen: Collection[str] = ()
    """Keys of titles."""
    exclude: Collection[tuple[str, int | None]] = ()
    """Keys of items."""
    within: Collection[Item] | None = None
    """None: the whole catalog, and what is not in it."""


class ListReader:
    """Reads one list.

    Lines that the sieve leaves out, and items that the list has already, are dropped. With the constraint there are none.
    """

    def __init__(self, known: Known, sieve: Sieve, counter: LineCounter, text: Callable[[Sequence[int]], str]) -> None:
        """
        Args:
            counter: counts closed lines, token by token.
            text: tokens -> text (`Policy.text`).
        """
        self.known, self.sieve, self.counter, self.text = known, sieve, counter, text
        self.ids: list[int] = []
        self.kept = 0
        """Recommendations so far."""
        self.dropped = 0
        """Lines that were left out."""
        self.cut = False
        """Whether the list ended within a line, at the limit of tokens."""
        self._lines = 0
        self._score = 0.0
        self._taken: set[tuple[str, int | None]] = set()

    def add(
        self, tokens: Sequence[int], logprobs: Sequence[float], finished: str | None = None
    ) -> Iterator[Recommendation]:
        """Take in what was written. Yield the recommendations on lines that it completes.

        finished: as in `Written`.
        """
        for token, logprob in zip(tokens, logprobs, strict=True):
            self.ids.append(token)
            self._score += logprob
            closed = self.counter.add(token)
            if closed != self._lines:
                yield from self._read(closed)
        if finished is not None:
            lines = lists.lines(self.text(self.ids))
            self.cut = finished == "length" and len(lines) > self._lines
            if not self.cut:
                yield from self._read(len(lines), lines)

    def _read(self, count: int, lines: Sequence[str] | None = None) -> Iterator[Recommendation]:
        """Yield the lines that are new, up to line `count`. The tokens since the last one are all theirs."""
        if lines is None:
            lines = lists.lines(self.text(self.ids))
        score, self._score = self._score, 0.0
        for line in lines[self._lines : count]:
            if (found := self._recommendation(line, score)) is not None:
                yield found
        self._lines = count

    def _recommendation(self, line: str, score: float) -> Recommendation | None:
        item, entry = self.known.item(line)
        key = self.known.match.item_key(entry or item)
        sieve = self.sieve
        outside = sieve.within is not None and entry not in sieve.within
        if outside or key in self._taken or key in sieve.exclude or key[0] in sieve.seen:
            self.dropped += 1
            return None
        self._taken.add(key)
        self.kept += 1
        title, year = entry or item
        metadata = self.known.fields.get(entry, {}) if entry is not None else {}
        return Recommendation(title, year, score, self.kept, entry, metadata)
