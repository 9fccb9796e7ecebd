"""A few conversations with every system's list, to read side by side."""

from dataclasses import dataclass

import numpy as np

from convrec_r1.data import Conversation
from convrec_r1.lists import fold, lines, parse_line
from convrec_r1.reward.config import Position
from convrec_r1.studies.comparison import over_seeds
from convrec_r1.studies.study import Study, System

SPREAD, RANDOM = "systems differ most", "drawn at random"
_SEED = 0
_LONGEST_LINE = 120
_BEYOND = 5  # lines past rank n that are shown


@dataclass(frozen=True)
class Line:
    """One line of a list. `note`: what is wrong with it, as far as the files tell; "" for nothing known."""

    text: str
    hit: bool
    note: str


@dataclass(frozen=True)
class ShownList:
    seed: int | None
    lines: tuple[Line, ...]
    value: float
    """The report's metric on this conversation; nan where it is not defined."""
    hits: int
    more: int
    """Lines that are not shown."""


@dataclass(frozen=True)
class Example:
    id: str
    why: str
    conversation: Conversation | None
    lists: tuple[tuple[System, tuple[ShownList, ...]], ...]
    """Of what was trained first, a list a seed."""


def choose_examples(study: Study, count: int) -> list[Example]:
    """Half (rounded up) where the trained systems' values, averaged over seeds, lie furthest apart, the most first; the
    other half at random among the rest, by a fixed seed, in the order of the conversations."""
    systems = study.trained if len(study.trained) > 1 else study.systems
    values = np.stack([over_seeds(system.values(study.metric)) for system in systems])
    defined = ~np.isnan(values)
    spread = np.where(defined, values, -np.inf).max(0) - np.where(defined, values, np.inf).min(0)
    spread = np.where(defined.any(0), spread, 0.0)
    count = min(count, len(study.ids))
    apart = [int(at) for at in np.argsort(-spread, kind="stable")[: -(-count // 2)] if spread[at] > 0]
    rest = np.setdiff1d(np.arange(len(study.ids)), apart)
    drawn = np.sort(np.random.default_rng(_SEED).permutation(rest)[: count - len(apart)])
    return [_example(study, at, SPREAD) for at in apart] + [_example(study, int(at), RANDOM) for at in drawn]


def _example(study: Study, at: int, why: str) -> Example:
    conversation = study.conversations.get(study.ids[at]) if study.conversations else None
    lists = []
    for system in (*study.trained, *(s for s in study.systems[::-1] if s.is_baseline)):
        shown = []
        for replicate in system.replicates:
            sample = replicate.sample(at)
            marked, more = mark_lines(sample.text, sample.hits, conversation, _position(study))
            value = replicate.values.get(study.metric, np.full(at + 1, np.nan))[at]
            shown.append(ShownList(replicate.seed, marked, float(value), sum(sample.hits), more))
        lists.append((system, tuple(shown)))
    return Example(study.ids[at], why, conversation, tuple(lists))


def mark_lines(
    text: str, hits: tuple[int, ...], conversation: Conversation | None, position: str
) -> tuple[tuple[Line, ...], int]:
    """The lines of a list with their hits, as they were scored, and how many further lines there are.

    hits: relevance of each rank [n].  position: what holds a rank, each line or only those that parse. Beside the hits
    stands what can be told without the catalog: not an item, a repeat, a seen title, past rank n.
    """
    seen = {fold(title) for title in conversation.seen} if conversation else set()
    years = conversation is None or any(item.year is not None for item in conversation.ground_truth)
    named: set[tuple[str, int | None]] = set()
    marked, rank = [], 0
    written = lines(text)
    for line in written:
        item = parse_line(line, year_required=years)
        holds_rank = item is not None or position == Position.line.value
        hit = holds_rank and rank < len(hits) and bool(hits[rank])
        note = ""
        if item is None:
            note = "not an item"
        elif (fold(item.title), item.year) in named:
            note = "repeat"
        elif fold(item.title) in seen:
            note = "seen"
        if item is not None:
            named.add((fold(item.title), item.year))
        if holds_rank and rank >= len(hits):
            note = "past the end"
        rank += holds_rank
        shown = " ".join(line.split())
        marked.append(
            Line(shown if len(shown) <= _LONGEST_LINE else shown[: _LONGEST_LINE - 1] + "…", hit, "" if hit else note)
        )
    shown_lines = marked[: len(hits) + _BEYOND]
    return tuple(shown_lines), len(marked) - len(shown_lines)


def _position(study: Study) -> str:
    return study.runs[0].config.get("reward.position", Position.line.value)
