"""Reflect: the teacher judges each conversation's best candidates (Stage 1 of arXiv 2510.20150)."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from convrec_r1.data.schema import Conversation
from convrec_r1.distill.answers import ratings
from convrec_r1.distill.config import ReflectConfig
from convrec_r1.distill.questions import judge, repair
from convrec_r1.distill.scores import blocks
from convrec_r1.distill.teachers.base import Question
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item

_BLOCK = 8192
"""Conversations whose questions are in memory together."""


@dataclass
class JudgeCounts:
    """Counts of ratings: for the card."""

    questions: int = 0
    repairs: int = 0
    """Questions for unreadable ratings."""
    candidates: int = 0
    """Ratings asked for: candidates times shuffles."""
    repaired: int = 0
    """Ratings read from the answer to a repair."""
    unread: int = 0
    """Ratings never read: they count as 0."""


@dataclass
class _Sheet:
    """The candidates of one question, in the order shown, and what was answered."""

    row: int
    """Of the conversation."""
    columns: np.ndarray
    question: Question
    """The last one asked."""
    missing: Sequence[int]
    """Numbers of the candidates without a rating."""


def reflect(
    interview: Interview,
    conversations: Sequence[Conversation],
    candidates: np.ndarray,
    items: Sequence[Item],
    cfg: ReflectConfig,
    *,
    domain: str,
    seed: int,
) -> tuple[np.ndarray, JudgeCounts]:
    """Ask the teacher to rate the candidates: r, -2 to 2, [M, K] float32, the mean over `cfg.shuffles` orders.

    candidates: places in `items`, [M, K], -1 after the last. Every question shows `cfg.per_question` of them, in an order
    drawn from (seed, conversation, shuffle): a judge's bias for the first ones then falls on no item in particular.
    Unreadable ratings are asked for `cfg.repairs` times more; those still missing count as 0.
    """
    total, counts = np.zeros(candidates.shape, dtype=np.float32), JudgeCounts()
    parts = blocks(len(conversations), _BLOCK)
    for number, rows in enumerate(parts, start=1):
        for shuffle in range(cfg.shuffles):
            title = f"Reflect {number}/{len(parts)}" if len(parts) > 1 else "Reflect"
            title += f" {shuffle + 1}/{cfg.shuffles}" if cfg.shuffles > 1 else ""
            sheets = []
            for row in rows:
                conversation = conversations[row]
                name = int.from_bytes(blake2b(conversation.id.encode(), digest_size=8).digest(), "big")
                order = np.random.default_rng((seed, shuffle, name)).permutation(np.flatnonzero(candidates[row] >= 0))
                for part in blocks(len(order), cfg.per_question):
                    columns = order[part.start : part.stop]
                    question = judge(conversation, [items[at] for at in candidates[row, columns].tolist()], domain)
                    sheets.append(_Sheet(row, columns, question, range(1, len(columns) + 1)))
            _judge(interview, sheets, cfg.repairs, title, total, counts)
    return total / cfg.shuffles, counts


def _judge(
    interview: Interview, sheets: list[_Sheet], repairs: int, title: str, total: np.ndarray, counts: JudgeCounts
) -> None:
    """Ask, ask again for missing ratings, and add the ratings to `total`."""
    counts.questions += len(sheets)
    counts.candidates += sum(len(sheet.columns) for sheet in sheets)
    asked = sheets
    for attempt in range(repairs + 1):
        answers = interview.ask([sheet.question for sheet in asked], f"{title}, repairs" if attempt else title)
        for sheet, answer in zip(asked, answers, strict=True):
            scores = ratings(answer.text, len(sheet.columns)).scores
            read = [number for number in sheet.missing if number in scores]
            total[sheet.row, sheet.columns[[number - 1 for number in read]]] += [scores[number] for number in read]
            counts.repaired += len(read) if attempt else 0
            sheet.missing = [number for number in sheet.missing if number not in scores]
            if sheet.missing:
                sheet.question = repair(sheet.question, answer.text, sheet.missing)
        asked = [sheet for sheet in asked if sheet.missing]
        if not asked:
            break
        counts.repairs += len(asked) if attempt < repairs else 0
    counts.unread += sum(len(sheet.missing) for sheet in asked)
