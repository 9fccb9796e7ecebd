"""Example conversations of a report, with the lists of all systems side by side."""

from dataclasses import dataclass

import numpy as np

from convrec_r1.data import Conversation
from convrec_r1.lists import fold, lines, parse_line
from convrec_r1.studies.numbers import short
from convrec_r1.studies.systems import Replicate, Study, System, over_seeds

SPREAD, RANDOM = "systems differ most", "drawn at random"
_SEED = 0
_LONGEST_LINE = 120
_BEYOND = 5  # number of lines shown after rank n


@dataclass(frozen=True)
class Line:
    """One line of a list."""

    text: str
    hit: bool
    note: str
    """Fault of the line: not an item, repeat, seen or past the end. "": none known."""


@dataclass(frozen=True)
class ShownList:
    """The list of one seed."""

    seed: int | None
    lines: tuple[Line, ...]
    value: float
    """The report's metric on this conversation. NaN: not defined."""
    hits: int
    more: int
    """Number of lines that are not shown."""


@dataclass(frozen=True)
class Example:
    """A conversation with the lists of every system, trained systems first."""

    id: str
    why: str
    conversation: Conversation | None
    lists: tuple[tuple[System, tuple[ShownList, ...]], ...]


def choose_examples(study: Study, count: int) -> list[Example]:
    """Choose `count` conversations.

    Half of them (rounded up) have the largest differences between the trained systems, averaged over seeds. The others are
    drawn at random with a fixed seed.
    """
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
    position = study.runs[0].config.get("reward.position", "line")

    def show(replicate: Replicate) -> ShownList:
        sample = replicate.samples[at]
        marked, more = mark_lines(sample.text, sample.hits, conversation, position)
        value = float(replicate.values[study.metric].iloc[at]) if study.metric in replicate.values else float("nan")
        return ShownList(replicate.seed, marked, value, sum(sample.hits), more)

    shown = (*study.trained, *(s for s in study.systems[::-1] if s.is_baseline))
    lists = tuple((system, tuple(map(show, system.replicates))) for system in shown)
    return Example(study.ids[at], why, conversation, lists)


def mark_lines(
    text: str, hits: tuple[int, ...], conversation: Conversation | None, position: str
) -> tuple[tuple[Line, ...], int]:
    """Mark the lines of a list with their hits, and with the faults that can be found without the catalog.

    Args:
        text: The list as the policy wrote it.
        hits: Relevance of each rank [n].
        conversation: None if it is not known.
        position: "line": every line has a rank. "parsed": only a line that parses has a rank.

    Returns:
        The lines to show, and the number of further lines.
    """
    seen = {fold(title) for title in conversation.seen} if conversation else set()
    years = conversation is None or any(item.year is not None for item in conversation.ground_truth)
    named: set[tuple[str, int | None]] = set()
    marked, rank = [], 0
    for line in lines(text):
        item = parse_line(line, year_required=years)
        holds_rank = item is not None or position == "line"
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
        marked.append(Line(short(line, _LONGEST_LINE), hit, "" if hit else note))
    shown = marked[: len(hits) + _BEYOND]
    return tuple(shown), len(marked) - len(shown)
