"""Stage 1's questions to a teacher: recommend, describe items, judge candidates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from convrec_r1.data.schema import Conversation
from convrec_r1.distill.answers import SCORES
from convrec_r1.distill.teachers.base import Chat, Kind, Question, Structure
from convrec_r1.lists import Item
from convrec_r1.policy.prompts import chat, dialogue

# Tokens of a line of an answer: usual and at most.
_LINE, _LONG_LINE = 9, 24
_DESCRIPTION, _LONG_DESCRIPTION = 60, 140
_RATING, _LONG_RATING = 5, 8
_SPARE = 64
"""Tokens for a word or two around an answer."""

_DESCRIBE = (
    "Describe each of these {domain}. If you do not know one, write what its title suggests. Answer with one JSON object a "
    'line, {{"item": NUMBER, "genres": [...], "keywords": [...], "plot": "one sentence"}}, and nothing else.\n{listed}'
)
_DESCRIBE_AS_JSON = 'Put these objects into one: {"items": [...]}.'
_JUDGE = (
    "Below are a conversation and {count} {domain}. How well would each suit the user who speaks there? Score -2 (not at all), "
    "-1, 0 (cannot tell), 1 or 2 (very well). Answer with one line for each, `NUMBER: SCORE`, and nothing else.\n"
    "Conversation:\n{dialogue}\n{domain_title}:\n{listed}"
)
_REPAIR = (
    "Some of them lack a score from -2 to 2 that can be read: {missing}. Score these again, one line each as `NUMBER: SCORE`, "
    "and write nothing else."
)
_JUDGE_AS_JSON = 'In place of lines, answer with one JSON object, {"NUMBER": SCORE, ...}.'


class Recommend(NamedTuple):
    """Subject of a question for a list of `n`."""

    conversation: Conversation
    n: int


class Describe(NamedTuple):
    """Subject of a question about items, numbered from 1."""

    items: tuple[Item, ...]


class Judge(NamedTuple):
    """Subject of a question for ratings. Candidates are numbered from 1 in this order."""

    conversation: Conversation
    candidates: tuple[Item, ...]


def recommend(conversation: Conversation, n: int, instruction: str) -> Question:
    """Ask for a list of `n`, with the prompt that a policy gets; the instruction's {n} is filled in."""
    messages = tuple(Chat(m["role"], m["content"]) for m in chat(conversation, instruction.format(n=n)))
    return _question("recommend", messages, n, (_LINE, _LONG_LINE), Recommend(conversation, n), None)


def describe(items: Sequence[Item], domain: str) -> Question:
    """Ask for genres, keywords and plot of each item."""
    messages = (Chat("user", _DESCRIBE.format(domain=domain, listed=_numbered(items))),)
    strings = {"type": "array", "items": {"type": "string"}}
    fields = {"item": {"type": "integer"}, "genres": strings, "keywords": strings, "plot": {"type": "string"}}
    structure = Structure(_object({"items": {"type": "array", "items": _object(fields)}}), _DESCRIBE_AS_JSON)
    return _question(
        "describe", messages, len(items), (_DESCRIPTION, _LONG_DESCRIPTION), Describe(tuple(items)), structure
    )


def judge(conversation: Conversation, candidates: Sequence[Item], domain: str) -> Question:
    """Ask for a score from -2 to 2 of each candidate (Reflect)."""
    text = _JUDGE.format(
        count=len(candidates),
        domain=domain,
        domain_title=domain.capitalize(),
        dialogue=dialogue(conversation),
        listed=_numbered(candidates),
    )
    return _ratings((Chat("user", text),), range(1, len(candidates) + 1), Judge(conversation, tuple(candidates)))


def repair(asked: Question, answer: str, missing: Sequence[int]) -> Question:
    """Ask for the ratings that the answer to a `judge` question lacks; numbers stay the same."""
    text = _REPAIR.format(missing=", ".join(map(str, missing)))
    messages = (*asked.messages, Chat("assistant", answer or "(nothing)"), Chat("user", text))
    return _ratings(messages, missing, asked.subject)


def _ratings(messages: tuple[Chat, ...], numbers: Sequence[int], subject: object) -> Question:
    score = {"type": "integer", "enum": list(SCORES)}
    structure = Structure(_object({str(number): score for number in numbers}), _JUDGE_AS_JSON)
    return _question("judge", messages, len(numbers), (_RATING, _LONG_RATING), subject, structure)


def _question(kind: Kind, messages, lines: int, tokens: tuple[int, int], subject, structure) -> Question:
    usual, most = tokens
    return Question(kind, messages, lines * most + _SPARE, lines * usual, subject, structure)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of an object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _numbered(items: Sequence[Item]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
