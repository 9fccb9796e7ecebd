"""What Stage 1 asks of a teacher: to recommend, to describe items, to judge candidates. Each wording stands here once."""

from collections.abc import Sequence
from dataclasses import dataclass

from convrec_r1.data.schema import Conversation
from convrec_r1.distill.teachers.base import Chat, Kind, Question
from convrec_r1.lists import Item
from convrec_r1.policy.prompts import chat, dialogue

# Tokens of an answer: what a line usually takes, and what it may take at most.
_LINE, _LONG_LINE = 9, 24
_DESCRIPTION, _LONG_DESCRIPTION = 60, 140
_RATING, _LONG_RATING = 5, 8
_SPARE = 64
"""For a word or two around an answer."""

_DESCRIBE = (
    "Describe each of these {domain}. If you do not know one, write what its title suggests. Answer with one JSON object a "
    'line, {{"item": NUMBER, "genres": [...], "keywords": [...], "plot": "one sentence"}}, and nothing else.\n{listed}'
)
_JUDGE = (
    "Below are a conversation and {count} {domain}. How well would each suit the user who speaks there? Score -2 (not at all), "
    "-1, 0 (cannot tell), 1 or 2 (very well). Answer with one line for each, `NUMBER: SCORE`, and nothing else.\n"
    "Conversation:\n{dialogue}\n{domain_title}:\n{listed}"
)
_REPAIR = (
    "Some of them lack a score from -2 to 2 that can be read: {missing}. Score these again, one line each as `NUMBER: SCORE`, "
    "and write nothing else."
)


@dataclass(frozen=True)
class Recommend:
    """Subject of a question for a list."""

    conversation: Conversation
    n: int


@dataclass(frozen=True)
class Describe:
    """Subject of a question about items, which are numbered from 1."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class Judge:
    """Subject of a question for ratings; candidates are numbered from 1 in this order."""

    conversation: Conversation
    candidates: tuple[Item, ...]


def recommend(conversation: Conversation, n: int, instruction: str) -> Question:
    """For a list of `n`: the very prompt that a policy gets, with the instruction's {n} filled in."""
    messages = tuple(Chat(m["role"], m["content"]) for m in chat(conversation, instruction.format(n=n)))
    return _question("recommend", messages, n, _LINE, _LONG_LINE, Recommend(conversation, n))


def describe(items: Sequence[Item], domain: str) -> Question:
    """For genres, keywords and plot of each item."""
    text = _DESCRIBE.format(domain=domain, listed=_numbered(items))
    messages = (Chat("user", text),)
    return _question("describe", messages, len(items), _DESCRIPTION, _LONG_DESCRIPTION, Describe(tuple(items)))


def judge(conversation: Conversation, candidates: Sequence[Item], domain: str) -> Question:
    """For a score from -2 to 2 of each candidate (design section 8, Reflect)."""
    text = _JUDGE.format(
        count=len(candidates),
        domain=domain,
        domain_title=domain.capitalize(),
        dialogue=dialogue(conversation),
        listed=_numbered(candidates),
    )
    subject = Judge(conversation, tuple(candidates))
    return _question("judge", (Chat("user", text),), len(candidates), _RATING, _LONG_RATING, subject)


def repair(asked: Question, answer: str, missing: Sequence[int]) -> Question:
    """For what the answer to a `judge` question lacks, by its numbers; the numbering stays."""
    messages = (
        *asked.messages,
        Chat("assistant", answer or "(nothing)"),
        Chat("user", _REPAIR.format(missing=", ".join(map(str, missing)))),
    )
    return _question(asked.kind, messages, len(missing), _RATING, _LONG_RATING, asked.subject)


def _question(kind: Kind, messages: tuple[Chat, ...], lines: int, usual: int, most: int, subject: object) -> Question:
    return Question(kind, messages, lines * most + _SPARE, lines * usual, subject)


def _numbered(items: Sequence[Item]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
