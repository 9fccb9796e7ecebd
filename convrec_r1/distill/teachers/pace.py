"""How fast a teacher may be asked: limits per minute, and when to ask again after a fault."""

import asyncio
import random
import time

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds: a wait after the first fault is drawn below the first, doubled with every further one up to the second."""


class Limit:
    """At most `per_minute` units in any minute, spread evenly: no bursts, which limits that look at seconds would refuse."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_a_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def take(self, units: float = 1.0) -> None:
        """Wait for one's turn and take it."""
        now = time.monotonic()
        turn = max(now, self._free_at)
        self._free_at = turn + units * self._seconds_a_unit
        if turn > now:
            await asyncio.sleep(turn - now)

    def correct(self, units: float) -> None:
        """Take more, or give back (negative): what an answer took beside what was reserved for it."""
        self._free_at += units * self._seconds_a_unit


class Gate:
    """Open but for when a teacher said how long to leave it alone: then nobody asks, not only who was told."""

    def __init__(self) -> None:
        self._closed_until = 0.0

    def close_for(self, seconds: float) -> None:
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    async def passed(self) -> None:
        while (left := self._closed_until - time.monotonic()) > 0:
            await asyncio.sleep(left)


def backoff(faults: int) -> float:
    """Seconds to wait after so many faults in a row, drawn from all that are allowed: those who failed together do not come
    back together ("full jitter")."""
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (faults - 1)))
