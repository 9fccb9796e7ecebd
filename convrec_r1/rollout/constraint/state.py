"""One list while it is written under the catalog constraint."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Set
from copy import copy
from itertools import chain
from typing import NamedTuple

import numpy as np

from convrec_r1.rollout.constraint.lines import END, CatalogLines, Continuations, Node, Opening

_NO_IDS, _NO_PLACES = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
_NONE: Set[int] = frozenset()


class TokenSet(NamedTuple):
    """Tokens that may come next."""

    ids: np.ndarray
    """int32 [E]. As a rule the same array for all lists at their node, so never to be changed."""
    without: np.ndarray = _NO_PLACES
    """int64 [D], ascending: places in `ids` of tokens that may not."""

    def tokens(self) -> np.ndarray:
        """Return the ids of the tokens, int32 [E - D]."""
        return np.delete(self.ids, self.without) if len(self.without) else self.ids


class ListState:
    """The lines that are closed to a list, how many it has, and how much of the next one is written.

    A list has `opening.n` lines, or as many as there are items for. Each line but the last ends with a newline, the last with
    EOS. A line is closed if the list has it, or another line of the same item.
    """

    def __init__(self, lines: CatalogLines, opening: Opening) -> None:
        self.lines, self.opening = lines, opening
        subset = opening.subset
        self.closed = [line for line in opening.closed if subset is None or line in subset]  # ascending
        self.open = self._count(0, len(lines))
        """Lines that are not closed."""
        self.count = 0
        """Lines that are complete."""
        self.node = lines.root._replace(first=True)
        self.ended = False
        """Whether EOS was written."""
        self._dead_at_root: Set[int] | None = None  # remembered: it is the widest node, and every list comes back to it

    def allowed(self) -> TokenSet:
        """Return the tokens that may come next: at least one, unless the list has ended."""
        if self.ended:
            return TokenSet(_NO_IDS)
        if self.count == self.opening.n or not self.open:
            return TokenSet(self.lines.only_eos)
        known = self.lines.continuations(self.node, self.opening.subset)
        dead, last = self._dead(known), self.count + 1 == self.opening.n
        ends = last or self.open <= self.lines.most_of_an_item  # the list may end with this line
        if not (dead or ends or known.across):
            return TokenSet(known.ids)
        ids, more = known.within if last else known.ids, []
        if ends:
            dead = {place for place in dead if place < len(ids)}
            if not last:
                dead.update(*(known.places(k) for k, line in known.ends if not self._goes_on_after(line)))
            if self._may_end():
                more.append(self.lines.vocabulary.eos)
        if known.across and not last:
            more += [token for token, line, tail in known.across if self._could_write(line, tail)]
        if not more:
            return TokenSet(ids, np.array(sorted(dead), dtype=np.int64))
        kept = [token for place, token in enumerate(ids.tolist()) if place not in dead]
        return TokenSet(np.array(kept + more, dtype=np.int32))

    def advance(self, token: int) -> None:
        """Take in the next token of the list.

        Raises:
            ValueError: it may not come next.
        """
        after = self.lines.step(self.node, token)
        if after is not None and not self.ended and self._count(after.lo, after.hi):
            self.node = after  # most tokens
            return
        vocabulary = self.lines.vocabulary
        if token == vocabulary.eos and not self.ended and self._may_end():
            self.ended = True
            return
        text = vocabulary.written(token, first=self.node.first)
        if self.ended or text is None or not self._write(text):
            raise ValueError(f"token {token} may not come after {self.count} lines and {self.node.depth} bytes")

    def _write(self, text: bytes) -> bool:
        """Take in bytes. Return whether they may come next; if they may not, the state is of no use any more."""
        for part in _by_line(text):
            node = self.lines.narrow(self.node, part)
            if node is None or not self._count(node.lo, node.hi):
                return False
            if not part.endswith(END):
                self.node = node
            elif self._goes_on_after(node.lo):
                self._close(node.lo)
            else:
                return False
        if not text:
            self.node = self.lines.root
        return True

    def _close(self, line: int) -> None:
        """Complete a line."""
        closing = [other for other in self.lines.same_item(line) if self._count(other, other + 1)]
        for other in closing:
            insort(self.closed, other)
        self.open -= len(closing)
        self.count += 1
        self.node = root = self.lines.root
        if self._dead_at_root is not None:
            known = self.lines.continuations(root, self.opening.subset)
            closed = (self._dead_on(known, root, other) for other in closing)
            self._dead_at_root = self._dead_at_root | set(chain.from_iterable(closed))

    def _count(self, lo: int, hi: int) -> int:
        """Return how many of the lines from `lo` to before `hi` are open."""
        subset = self.opening.subset
        total = hi - lo if subset is None else subset.count(lo, hi)
        return total - bisect_left(self.closed, hi) + bisect_left(self.closed, lo)

    def _goes_on_after(self, line: int) -> bool:
        """Return whether another line follows once this one is complete."""
        item = sum(self._count(other, other + 1) for other in self.lines.same_item(line))
        return self.count + 1 < self.opening.n and self.open > item

    def _may_end(self) -> bool:
        """Return whether EOS may come next."""
        if self.count == self.opening.n or not self.open:
            return self.node.depth == 0
        line = self.lines.complete(self.node)
        return line is not None and self._count(line, line + 1) > 0 and not self._goes_on_after(line)

    def _could_write(self, line: int, tail: bytes) -> bool:
        """Return whether the list can end a line and write more."""
        if not self._count(line, line + 1) or not self._goes_on_after(line):
            return False
        state = copy(self)
        state.closed, state._dead_at_root = list(self.closed), None
        state._close(line)
        return state._write(tail)

    def _dead(self, known: Continuations) -> Set[int]:
        """Return the places of the tokens that begin closed lines only."""
        root = self.node.depth == 0 and not self.node.first
        if root and self._dead_at_root is not None:
            return self._dead_at_root
        lo, hi = bisect_left(self.closed, self.node.lo), bisect_left(self.closed, self.node.hi)
        if lo == hi and not root:
            return _NONE
        dead: set[int] = set()
        dead.update(*(self._dead_on(known, self.node, line) for line in self.closed[lo:hi]))
        if root:
            self._dead_at_root = dead
        return dead

    def _dead_on(self, known: Continuations, node: Node, line: int) -> Iterator[int]:
        """Yield the places of the tokens that begin this line and closed lines only."""
        for k in known.along(self.lines.texts[line][node.depth :]):
            if not self._count(*known.ranges[k]):
                yield from known.places(k)


def _by_line(text: bytes) -> Iterator[bytes]:
    """Yield the parts of a text up to each newline, with it, and the rest."""
    while text:
        part, newline, text = text.partition(END)
        yield part + newline
