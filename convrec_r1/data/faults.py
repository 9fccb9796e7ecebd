"""Faults that refuse a file, and notes on what was left out of it, each reported together."""

import logging
import re
from collections import Counter
from types import TracebackType

from convrec_r1.base.errors import UserError

FIRST = 10
"""Faults that a message shows."""


class Faults:
    """Faults of rows. `with faults:` around the reading of a row keeps its UserError; `check` raises them as one.

    The first ten are shown, each with its file and line.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, UserError):
            return False
        self.add(str(error))
        return True

    def add(self, message: str) -> None:
        self.count += 1
        if self.count <= FIRST:
            self.first.append(message)

    def check(self) -> None:
        """Raise UserError if there is a fault."""
        if self.count == 1:
            raise UserError(self.first[0])
        if self.count:
            head = f"{self.count:,} faults, the first {FIRST}:" if self.count > FIRST else f"{self.count} faults:"
            raise UserError("\n  ".join([head, *self.first]))


class Notes:
    """Counts of what was left out or read in another way, each with its first place."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, what: str, where: str = "", number: int = 1) -> None:
        """Count a case.

        Args:
            what: a phrase after a number, which begins with a plural in -s ("rows without a title").
            where: its place, and what stands there.
        """
        self.counts[what] += number
        self.first.setdefault(what, where)

    def warn(self, log: logging.Logger, about: str) -> None:
        """Log all counts in one warning that begins with `about`. Nothing is logged without any."""
        if text := str(self):
            log.warning("%s %s", about, text)

    def __str__(self) -> str:
        """All counts in one line, "" without any."""
        cases = ((_counted(count, what), self.first[what]) for what, count in self.counts.items() if count)
        return "; ".join(f"{case} (first: {where})" if where else case for case, where in cases)


_VERBS = {"are": "is", "were": "was", "have": "has", "do": "does"}


def _counted(count: int, what: str) -> str:
    """Return a number and what it counts, in the singular for 1."""
    if count == 1:
        noun, _, rest = what.partition(" ")
        rest = re.sub(rf"\b(?:{'|'.join(_VERBS)})\b", lambda verb: _VERBS[verb[0]], rest)
        what = f"{noun.removesuffix('s')} {rest}"
    return f"{count:,} {what}"
