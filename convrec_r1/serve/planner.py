"""Turn a request into a job for the engine, and a reader of its list."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from convrec_r1.base.errors import UserError
from convrec_r1.data.items import split_title
from convrec_r1.data.schema import Conversation
from convrec_r1.lists import Item
from convrec_r1.policy import Policy, PromptEncoder
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.constraint import Constraint, Subset
from convrec_r1.rollout.lines import LineCounter
from convrec_r1.serve.filters import Condition
from convrec_r1.serve.package import Settings
from convrec_r1.serve.reader import Known, ListReader, Sieve
from convrec_r1.serve.request import LARGEST, Request, as_messages
from convrec_r1.serve.stepper import Job


class Plan(NamedTuple):
    """How a request is answered."""

    job: Job
    reader: ListReader
    n: int
    notes: list[str]


class Planner:
    """Knows the policy's tokenizer, its settings and its catalog. Threads may share it."""

    def __init__(
        self, policy: Policy, settings: Settings, known: Known, constraint: Constraint | None, max_length: int
    ) -> None:
        """
        Args:
            constraint: None: lists are written freely, and lines are left out afterwards.
            max_length: upper limit of prompt and list together, in tokens.
        """
        self.policy, self.settings, self.known, self.constraint = policy, settings, known, constraint
        self.max_length = max_length
        self._tables = [t.tolist() for t in (policy.newline, policy.blank, policy.opens, policy.thought)]
        self._lock = threading.Lock()  # tokenizers are not made for several threads
        self._encoder = lru_cache(64)(self._make_encoder)
        self._within = lru_cache(64)(self._select)
        self._encoder(settings.n)  # an instruction or template that cannot be rendered is reported now

    def plan(self, request: Request) -> Plan:
        """Raises UserError for a request that cannot be answered."""
        messages, notes = as_messages(request.messages)
        n = request.n or self.settings.n
        seen, exclude = self._left_out(request, notes)
        within, subset = (None, None) if request.where is None else self._within(request.where)
        with self._lock:
            prompt = self._encoder(n).prompt(Conversation("", "", messages, ()))
        opening, lines, sieve = None, n, Sieve()
        if self.constraint is not None:
            opening, lines = self.constraint.opening(n, seen, exclude, subset), None
        else:
            match = self.known.match
            sieve = Sieve(match.seen_keys(seen), {match.item_key(item) for item in exclude}, within)
        limit = min(longest(n, self.settings, self.constraint), request.max_tokens or LARGEST)
        sampling = Sampling(
            temperature=request.temperature, top_p=request.top_p, top_k=request.top_k,
            max_tokens=max(1, min(limit, self.max_length - len(prompt))), max_lines=lines,
        )  # fmt: skip
        job = Job(prompt, request.seed, sampling, opening)
        return Plan(job, ListReader(self.known, sieve, LineCounter(*self._tables), self._text), n, notes)

    def knows(self, title: str) -> bool:
        """Return whether the catalog has an item with this title, or this `Title (Year)`. True if no catalog is known."""
        catalog, match = self.known.catalog, self.known.match
        if catalog is None:
            return True
        item = split_title(title)
        return (item.year is not None and catalog.find(item, match) is not None) or match.key(title) in self._titles

    def count(self, where: str) -> int:
        """Return how many items meet a condition. Raises UserError for one that cannot be read."""
        return len(self._within(where)[0])

    def _text(self, ids: Sequence[int]) -> str:
        with self._lock:
            return self.policy.text(ids)

    def _left_out(self, request: Request, notes: list[str]) -> tuple[list[str], list[Item]]:
        """Return the titles and the items that the list may not have. Texts that the catalog lacks are noted."""
        seen: list[str] = list(request.seen)
        exclude: list[Item] = []
        for entry in request.exclude:
            item = split_title(entry) if isinstance(entry, str) else Item(*entry)
            if item.year is None:
                seen.append(item.title)
            else:
                exclude.append(item)
        given = [*request.seen, *(entry for entry in request.exclude if isinstance(entry, str))]
        if unknown := [title for title in given if not self.knows(title)]:
            notes.append(f"Not in the catalog: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}.")
        return seen, exclude

    @cached_property
    def _titles(self) -> frozenset[str]:
        return frozenset(self.known.match.key(item.title) for item in self.known.catalog or ())

    def _select(self, where: str) -> tuple[frozenset[Item], Subset | None]:
        """Return the items that a condition leaves, and their part of the constraint."""
        if self.known.catalog is None:
            raise UserError("where needs a catalog, and this policy has none here: give catalog=FILE.")
        items = Condition.parse(where).select(self.known.catalog, self.known.fields)
        return items, None if self.constraint is None else self.constraint.subset(items)

    def _make_encoder(self, n: int) -> PromptEncoder:
        settings = self.settings
        return PromptEncoder(
            self.policy.tokenizer, settings.instruction, n, settings.max_prompt_length,
            template=settings.template, date=settings.date,
        )  # fmt: skip


def longest(n: int, settings: Settings, constraint: Constraint | None) -> int:
    """Return the limit of the tokens of a list of n lines.

    A list of more lines than the policy was trained for may be longer. With the constraint it has as many as it needs: a token
    writes one byte at least.
    """
    limit = -(-settings.max_completion_length * max(n, settings.n) // settings.n)
    return limit if constraint is None else max(limit, n * max(map(len, constraint.lines.texts)))
