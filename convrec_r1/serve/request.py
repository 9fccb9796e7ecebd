"""What is asked of a policy, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.common import read_messages
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item

Messages = str | Sequence[Mapping[str, Any]] | Sequence[Message]
"""A conversation: the user's only message, or messages of {role, content} in the form of chat APIs."""
Fields = Mapping[str, tuple[str, ...]]
"""What is known of an item: the values of each named field."""
LARGEST = 2**62
"""Seeds are below."""


@dataclass(frozen=True)
class Recommendation:
    """One line of a list. As text it is `Title (Year)`."""

    title: str
    year: int | None
    score: float
    """Log-prob of the line, given the conversation and the lines before: the sum over its tokens, with the newline or EOS that
    ends it. With the constraint, of the distribution over the tokens that it allows."""
    rank: int
    """Place in the list, from 1."""
    item: Item | None = None
    """The catalog's item. None: the line names no item of the catalog, or no catalog is known."""
    metadata: Fields = field(default_factory=dict)

    def __str__(self) -> str:
        return str(Item(self.title, self.year))

    def as_dict(self) -> dict[str, Any]:
        """Return the recommendation as plain values, for JSON."""
        return {
            "rank": self.rank, "title": self.title, "year": self.year, "score": round(self.score, 4),
            "in_catalog": self.item is not None, "metadata": {name: list(values) for name, values in self.metadata.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A list that is asked for."""

    messages: Messages
    n: int | None = None
    """Recommendations. None: as many as the policy was trained to give."""
    seen: Sequence[str] = ()
    """Titles, or `Title (Year)`, that the user has seen. All items with such a title are left out."""
    exclude: Sequence[str | Item] = ()
    """Items that are left out: `Title (Year)`, or the items of a list before."""
    where: str | None = None
    """Condition on the items, such as `genre=comedy and year>1990` (serve/filters.py)."""
    temperature: float = 0.0
    """0: greedy, the list that evaluations judge."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    """Of a list with `temperature` above 0: the same seed gives the same list."""
    max_tokens: int | None = None
    """Limit of the list's tokens, where it is below what n items need. A line that it cuts is left out."""

    def __post_init__(self) -> None:
        wrong = []
        if self.n is not None and (not _whole(self.n) or self.n < 1):
            wrong.append(f"n={self.n!r} must be a whole number of at least 1.")
        if not _number(self.temperature) or not 0 <= self.temperature <= 100:
            wrong.append(f"temperature={self.temperature!r} must be from 0 (greedy) to 100.")
        if not _number(self.top_p) or not 0 < self.top_p <= 1:
            wrong.append(f"top_p={self.top_p!r} must be above 0 and at most 1.")
        if not _whole(self.top_k) or self.top_k < 0:
            wrong.append(f"top_k={self.top_k!r} must be a whole number of at least 0 (0: all tokens).")
        if not _whole(self.seed) or not 0 <= self.seed < LARGEST:
            wrong.append(f"seed={self.seed!r} must be a whole number from 0 to below 2**62.")
        if self.max_tokens is not None and (not _whole(self.max_tokens) or self.max_tokens < 1):
            wrong.append(f"max_tokens={self.max_tokens!r} must be a whole number of at least 1.")
        for name in ("seen", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(entry, (str, tuple)) for entry in value):
                wrong.append(f"{name} must be a list of titles, found {value!r}.")
        if wrong:
            raise UserError(" ".join(wrong))


def as_messages(messages: Messages) -> tuple[tuple[Message, ...], list[str]]:
    """Return a conversation in the form of `data.schema`, with notes on what was left out.

    Raises:
        UserError: no list of messages, an unknown role, or no message with text.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    elif not isinstance(messages, (list, tuple)):
        raise UserError(f"messages must be a text or a list of {{role, content}}, found {type(messages).__name__}.")
    rows = [{"role": m.role, "content": m.content} if isinstance(m, Message) else m for m in messages]
    system = sum(isinstance(m, dict) and m.get("role") in ("system", "developer") for m in rows)
    read = read_messages(Row({"messages": rows}, "request"), "messages")
    notes = ["Messages of the system were left out: the policy has its own instruction."] if system else []
    return read, notes


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
