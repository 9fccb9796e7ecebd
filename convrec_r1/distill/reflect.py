"""Reflect: the teacher judges each conversation's best candidates (design section 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from convrec_r1.data.schema import Conversation
from convrec_r1.distill.answers import ratings
from convrec_r1.distill.config import ReflectConfig
from convrec_r1.distill.questions import judge, repair
from convrec_r1.distill.teachers.base import Question
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item


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

    def add(self, other: "JudgeCounts") -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _Sheet(NamedTuple):
    """The candidates of one question: row of the conversation, columns in the order shown."""

    row: int
    columns: np.ndarray
    question: Question


def reflect(
    interview: Interview,
    conversations: Sequence[Conversation],
    candidates: np.ndarray,
    items: Sequence[Item],
    cfg: ReflectConfig,
    *,
    domain: str,
    seed: int,
    title: str = "Reflect",
) -> tuple[np.ndarray, JudgeCounts]:
    """Ask the teacher to rate the candidates: r, -2 to 2, [M, K] float32, the mean over `cfg.shuffles` orders.

    candidates: places in `items`, [M, K], -1 after the last. Every question shows `cfg.per_question` of them, in an order
    drawn from (seed, conversation, shuffle): a judge's bias for the first ones then falls on no item in particular.
    Unreadable ratings are asked for `cfg.repairs` times more; those still missing count as 0.
    """
    total = np.zeros(candidates.shape, dtype=np.float32)
    counts = JudgeCounts()
    for shuffle in range(cfg.shuffles):
        sheets = [
            sheet
            for row, conversation in enumerate(conversations)
            for sheet in _sheets(row, conversation, candidates[row], items, cfg, domain, seed, shuffle)
        ]
        counts.questions += len(sheets)
        counts.candidates += sum(len(sheet.columns) for sheet in sheets)
        which = f"{title} {shuffle + 1}/{cfg.shuffles}" if cfg.shuffles > 1 else title
        _judge_all(interview, sheets, cfg.repairs, which, total, counts)
    return total / cfg.shuffles, counts


def _sheets(row, conversation, candidates, items, cfg: ReflectConfig, domain, seed, shuffle) -> list[_Sheet]:
    shown = np.flatnonzero(candidates >= 0)
    name = blake2b(conversation.id.encode(), digest_size=8).digest()
    order = np.random.default_rng((seed, shuffle, int.from_bytes(name, "big"))).permutation(shown)
    sheets = []
    for start in range(0, len(order), cfg.per_question):
        columns = order[start : start + cfg.per_question]
        question = judge(conversation, [items[at] for at in candidates[columns].tolist()], domain)
        sheets.append(_Sheet(row, columns, question))
    return sheets


def _judge_all(
    interview, sheets: list[_Sheet], repairs: int, title: str, total: np.ndarray, counts: JudgeCounts
) -> None:
    """Ask, ask again for missing ratings, and add the ratings to `total`."""
    answers = interview.ask([sheet.question for sheet in sheets], title)
    read = [ratings(answer.text, len(sheet.columns)) for sheet, answer in zip(sheets, answers, strict=True)]
    scores = [dict(found.scores) for found in read]
    missing = [found.faulty for found in read]
    last = list(zip([sheet.question for sheet in sheets], [answer.text for answer in answers], strict=True))
    for _ in range(repairs):
        faulty = [at for at, numbers in enumerate(missing) if numbers]
        if not faulty:
            break
        questions = [repair(*last[at], missing[at]) for at in faulty]
        counts.repairs += len(questions)
        for at, question, answer in zip(faulty, questions, interview.ask(questions, f"{title}, repairs"), strict=True):
            found = ratings(answer.text, len(sheets[at].columns))
            mended = {number: found.scores[number] for number in missing[at] if number in found.scores}
            scores[at] |= mended
            counts.repaired += len(mended)
            missing[at] = tuple(number for number in missing[at] if number not in mended)
            last[at] = (question, answer.text)
    counts.unread += sum(map(len, missing))
    for sheet, found in zip(sheets, scores, strict=True):
        for number, score in found.items():
            total[sheet.row, sheet.columns[number - 1]] += score
