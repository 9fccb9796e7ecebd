"""Tokens and US dollars of questions: estimated before they are asked, and counted as they are answered."""

from collections.abc import Iterable
from functools import cache as remembered
from typing import NamedTuple

from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers.base import Question
from convrec_r1.distill.teachers.cache import AnswerCache, characters


class Estimate(NamedTuple):
    """Questions that are still to be asked."""

    questions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def estimate(questions: Iterable[Question], cache: AnswerCache, identity: str) -> Estimate:
    """Estimate tokens from this teacher's cached answers of the same kind, or else from characters and expected lengths."""
    number, read, written = 0, 0.0, 0.0
    rates = remembered(lambda kind: cache.rates(identity, kind))
    for question in questions:
        number += 1
        per_character, per_expected = rates(question.kind)
        read += characters(question) * per_character
        written += question.expected_tokens * per_expected
    return Estimate(number, round(read), round(written))


def price(prompt_tokens: int, completion_tokens: int, cfg: TeacherConfig) -> float | None:
    """Return US dollars, or None if a price is not known."""
    if cfg.price_in is None or cfg.price_out is None:
        return None
    return (prompt_tokens * cfg.price_in + completion_tokens * cfg.price_out) / 1e6


def in_words(prompt_tokens: int, completion_tokens: int, cfg: TeacherConfig) -> str:
    """`1.23M tokens in, 340k out, $0.55`."""
    cost = price(prompt_tokens, completion_tokens, cfg)
    dollars = "" if cost is None else f", ${cost:.2f}"
    return f"{_short(prompt_tokens)} tokens in, {_short(completion_tokens)} out{dollars}"


def _short(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
