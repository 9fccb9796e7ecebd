"""What questions take, in tokens and dollars: before they are asked, and as they are answered."""

from collections.abc import Iterable
from dataclasses import dataclass

from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers.base import Kind, Question
from convrec_r1.distill.teachers.cache import AnswerCache, Usage, characters

_ENOUGH = 20
"""Answers from which a teacher's own rates are used."""
_CHARACTERS_A_TOKEN = 4.0
"""Until then; what English text has with the common tokenizers."""


@dataclass(frozen=True)
class Estimate:
    """Of questions that are still to be asked."""

    questions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.questions + other.questions,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def estimate(questions: Iterable[Question], cache: AnswerCache, identity: str) -> Estimate:
    """By this teacher's answers of the same kind in the cache where it gave enough; else by characters and by the lengths that
    the questions expect."""
    number = 0
    read = written = 0.0
    usages: dict[Kind, Usage] = {}
    for question in questions:
        if question.kind not in usages:
            usages[question.kind] = cache.usage(identity, question.kind)
        usage = usages[question.kind]
        known = usage.answers >= _ENOUGH
        number += 1
        read += characters(question) * (
            usage.prompt_tokens / max(1, usage.prompt_characters) if known else 1 / _CHARACTERS_A_TOKEN
        )
        written += question.expected_tokens * (
            usage.completion_tokens / max(1, usage.expected_tokens) if known else 1.0
        )
    return Estimate(number, round(read), round(written))


def price(prompt_tokens: int, completion_tokens: int, cfg: TeacherConfig) -> float | None:
    """US dollars; None where a price is not known. A teacher on this machine costs none."""
    if cfg.price_in is None or cfg.price_out is None:
        return None
    return (prompt_tokens * cfg.price_in + completion_tokens * cfg.price_out) / 1e6


def worded(prompt_tokens: int, completion_tokens: int, cfg: TeacherConfig) -> str:
    """`1.2M tokens in, 340k out, $0.55`."""
    cost = price(prompt_tokens, completion_tokens, cfg)
    dollars = "" if cost is None else f", ${cost:.2f}"
    return f"{_short(prompt_tokens)} tokens in, {_short(completion_tokens)} out{dollars}"


def _short(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
