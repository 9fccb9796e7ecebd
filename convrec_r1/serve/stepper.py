"""The interface between a session and an engine that writes lists token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from convrec_r1.rollout.base import Sampling

if TYPE_CHECKING:  # it imports transformers, which takes seconds
    from convrec_r1.rollout.constraint import Opening


@dataclass(frozen=True)
class Job:
    """One list that an engine writes."""

    prompt: Sequence[int]
    seed: int
    sampling: Sampling
    """With n=1."""
    opening: Opening | None = None
    """What the list may hold. None: anything."""


class Written(NamedTuple):
    """What one step added to a list."""

    key: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    """Of the distribution that the tokens were sampled from."""
    finished: Literal["stop", "length"] | None
    """stop: the list has ended. length: at `max_tokens`. None: it goes on."""


class Stepper(Protocol):
    """An engine that writes several lists at a time. All calls come from one thread."""

    capacity: int
    """Lists that it advances at a time."""

    def add(self, key: int, job: Job) -> None:
        """Begin a list as soon as there is room for it. Several that wait may begin together."""
        ...

    def step(self) -> list[Written]:
        """Advance lists by a token or more. Return what was written; a list that is finished is not named again.

        Returns nothing, at once, if no list was added that has not finished.
        """
        ...

    def abort(self, key: int) -> None:
        """Do not write the rest of a list. A key that is not known (any more) is ignored."""
        ...

    def reset(self) -> None:
        """Drop all lists, after a step that failed."""
        ...

    def close(self) -> None:
        """Free memory and end processes."""
        ...
