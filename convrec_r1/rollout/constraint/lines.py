"""A catalog's lines as an automaton over bytes: which tokens continue a line that has been begun."""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from convrec_r1.lists import Item
from convrec_r1.rollout.constraint.vocabulary import Pieces, Vocabulary

END = b"\n"
_AFTER = b"\xff"
"""Larger than any byte of UTF-8."""
_KEPT = 1 << 16
"""Nodes whose continuations stay in memory."""

Across = tuple[int, int, bytes]
"""A token that ends a line and writes more: its id, the line, and what it writes of the next one."""


class Node(NamedTuple):
    """A line that has been begun: the lines `lo` to before `hi` of the sorted ones share its first `depth` bytes."""

    lo: int
    hi: int
    depth: int
    first: bool = False
    """Whether no token of the list has been written."""


class Subset:
    """The part of a catalog that a list may take its items from. Two that hold the same lines are equal."""

    def __init__(self, lines: Iterable[int], total: int) -> None:
        """lines: indices of the lines. total: number of all lines."""
        inside = np.zeros(total, dtype=bool)
        inside[np.fromiter(lines, dtype=np.int64)] = True
        self.total = total
        self.bits = np.packbits(inside).tobytes()
        """A bit for each line: `unpack` makes the same subset of them."""
        self.before: list[int] = [0, *inside.cumsum().tolist()]
        """How many lines before each one are inside, [total + 1]."""

    @staticmethod
    @lru_cache(maxsize=64)
    def unpack(bits: bytes, total: int) -> "Subset":
        """Return the subset whose lines are set in `bits`: the same object for the same bits, while it is in use."""
        return Subset(np.unpackbits(np.frombuffer(bits, np.uint8), count=total).nonzero()[0], total)

    def __reduce__(self):
        return Subset.unpack, (self.bits, self.total)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Subset) and (self.bits, self.total) == (other.bits, other.total))

    def __hash__(self) -> int:
        return hash(self.bits)

    def count(self, lo: int, hi: int) -> int:
        """Return how many of the lines from `lo` to before `hi` are inside."""
        return self.before[hi] - self.before[lo]

    def __contains__(self, line: int) -> bool:
        return self.before[line + 1] > self.before[line]


@dataclass(frozen=True)
class Opening:
    """What a list may hold when it begins."""

    n: int
    """Lines."""
    closed: tuple[int, ...] = ()
    """Lines that it may not hold, ascending."""
    subset: Subset | None = None
    """None: the whole catalog."""

    def packed(self) -> dict[str, Any]:
        """Return the opening as numbers and bytes, to travel in a message: `unpack` reads it."""
        packed: dict[str, Any] = {"n": self.n, "closed": np.array(self.closed, dtype=np.int32).tobytes()}
        return packed if self.subset is None else packed | {"subset": self.subset.bits, "total": self.subset.total}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> "Opening":
        subset = Subset.unpack(packed["subset"], packed["total"]) if "subset" in packed else None
        return cls(packed["n"], tuple(np.frombuffer(packed["closed"], np.int32).tolist()), subset)


class Continuations:
    """The tokens that may follow at a node as long as no line is closed.

    Tokens that write the same bytes stand together. Those that end a line stand last.
    """

    def __init__(
        self, found: Iterable[tuple[bytes, int, int, np.ndarray]], across: Sequence[Across], longest: int
    ) -> None:
        """
        Args:
            found: bytes after the node, the lines that begin with them (from, to), and the ids of the tokens that write them.
            across: tokens that end a line of the node and write more.
            longest: bytes of the longest.
        """
        ordered = sorted(found, key=lambda one: one[0].endswith(END))
        self._starts = list(accumulate((len(ids) for *_, ids in ordered), initial=0))
        self._at = {text: k for k, (text, *_) in enumerate(ordered)}
        self._longest = longest
        self.ids = np.concatenate([ids for *_, ids in ordered]) if ordered else np.zeros(0, dtype=np.int32)
        self.ranges = [(lo, hi) for _, lo, hi, _ in ordered]
        """Lines that begin with each bytes."""
        self.ends = [(k, lo) for k, (text, lo, *_) in enumerate(ordered) if text.endswith(END)]
        """Of the bytes that end a line: their place in `ranges`, and the line."""
        self.within = self.ids[: self._starts[len(ordered) - len(self.ends)]]
        """Those of `ids` that do not end a line."""
        self.across = across

    def places(self, k: int) -> range:
        """Return where in `ids` the tokens stand that write the bytes of `ranges[k]`."""
        return range(self._starts[k], self._starts[k + 1])

    def along(self, rest: bytes) -> Iterator[int]:
        """Yield the places in `ranges` of the bytes that begin the rest of a line."""
        for length in range(min(len(rest), self._longest) + 1):
            k = self._at.get(rest[:length])
            if k is not None:
                yield k


class CatalogLines:
    """The lines of a catalog's items in the order of their bytes, each with the newline that ends it.

    Every line can be written, whatever part of it is written already: lines with a character that the vocabulary cannot write
    are left out (`unwritable`).
    """

    def __init__(self, items: Iterable[Item], vocabulary: Vocabulary, same: Callable[[Item], Hashable]) -> None:
        """same: key of an item. Items with equal keys are the same one: a list can have one line of them."""
        lines = {str(item).encode() + END: item for item in items}
        self.vocabulary = vocabulary.for_text(b"".join(lines))
        self.texts = sorted(text for text in lines if self.vocabulary.writes(text))
        self.items = [lines[text] for text in self.texts]
        self.unwritable = [item for text, item in lines.items() if not self.vocabulary.writes(text)]
        self.root = Node(0, len(self.texts), 0)
        groups: dict[Hashable, list[int]] = {}
        for line, item in enumerate(self.items):
            groups.setdefault(same(item), []).append(line)
        self._same = {line: group for group in groups.values() if len(group) > 1 for line in group}
        self.most_of_an_item = max((len(group) for group in groups.values()), default=0)
        """Lines of the item that has the most."""
        self.only_eos = np.array([vocabulary.eos], dtype=np.int32)
        """The ids of the tokens that may follow a list's last line."""
        self._remember()

    def _remember(self) -> None:
        self._begins = lru_cache(maxsize=_KEPT)(self._could_begin)
        self.continuations = lru_cache(maxsize=_KEPT)(self._continuations)
        """(node, subset | None) -> the tokens that may follow at the node, in the whole catalog or in a part of it."""
        self.step = lru_cache(maxsize=4 * _KEPT)(self._step)
        """(node, token) -> the node after a token that ends no line. None: no line goes on so, or the token ends one."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the lines without what is remembered of them: it is quickly made again, and is larger than they are."""
        return {name: value for name, value in vars(self).items() if name not in ("_begins", "continuations", "step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def __len__(self) -> int:
        return len(self.texts)

    def same_item(self, line: int) -> Sequence[int]:
        """Return the lines of the item that a line names, with itself."""
        return self._same.get(line) or (line,)

    def narrow(self, node: Node, text: bytes) -> Node | None:
        """Return the node after more bytes, which have no newline before their end. None: no line begins so."""
        if node.lo == node.hi:
            return None
        begun = self.texts[node.lo][: node.depth] + text
        lo = bisect_left(self.texts, begun, node.lo, node.hi)
        hi = bisect_left(self.texts, begun + _AFTER, lo, node.hi)
        return Node(lo, hi, node.depth + len(text)) if lo < hi else None

    def complete(self, node: Node) -> int | None:
        """Return the line that is complete at a node but for its newline. None: there is none."""
        end = self.narrow(node, END)
        return None if end is None else end.lo

    def _step(self, node: Node, token: int) -> Node | None:
        text = self.vocabulary.written(token, first=node.first)
        return None if not text or END in text else self.narrow(node, text)

    def _continuations(self, node: Node, subset: Subset | None) -> Continuations:
        pieces = self.vocabulary.first if node.first else self.vocabulary.inside
        ranges: dict[bytes, list[int]] = {}  # by what tokens begin with: the first line, and the one after the last
        across: list[Across] = []
        for line in range(node.lo, node.hi):
            if subset is None or line in subset:
                self._walk(line, node.depth, pieces, ranges, across)
        found = [(text, lo, hi, pieces.ids[text]) for text, (lo, hi) in ranges.items() if text in pieces.ids]
        return Continuations(found, across, max(map(len, ranges), default=0))

    def _walk(
        self, line: int, depth: int, pieces: Pieces, ranges: dict[bytes, list[int]], across: list[Across]
    ) -> None:
        """Take in what tokens can write of a line from its byte `depth` on."""
        rest = self.texts[line][depth:]
        for length in range(len(rest) + 1):
            text = rest[:length]
            if text not in pieces.prefixes:
                return
            ranges.setdefault(text, [line, line])[1] = line + 1
        across += [(token, line, tail) for token, tail in pieces.across.get(rest, ()) if self._begins(tail)]

    def _could_begin(self, text: bytes) -> bool:
        """Return whether a list could go on with whole lines and the beginning of one."""
        *whole, begun = text.split(END)
        return all(self.narrow(self.root, line + END) for line in whole) and self.narrow(self.root, begun) is not None
