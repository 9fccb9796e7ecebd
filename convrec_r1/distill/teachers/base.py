"""The protocol of a teacher, its questions and answers, and its errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from convrec_r1.base.plugins import TARGET, build
from convrec_r1.distill.config import TeacherConfig

Kind = Literal["recommend", "describe", "judge"]
THINKS = (
    "If the model thinks before it answers, switch that off (teacher.template.enable_thinking=false on vLLM and SGLang, "
    "+teacher.extra.reasoning_effort=low at OpenAI), or give teacher.extra_tokens=2000 or more"
)
"""Advice where an answer has no text."""


class Chat(NamedTuple):
    """A message of a question. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Structure:
    """A question's answer as JSON, for teachers that can be held to a schema."""

    schema: Mapping[str, Any]
    """JSON Schema of an object; every property is required and no others are allowed."""
    request: str
    """A sentence to add to the question: answer as JSON in place of lines."""


@dataclass(frozen=True)
class Question:
    """A question to a teacher. The same messages with the same limit are the same question."""

    kind: Kind
    messages: tuple[Chat, ...]
    max_tokens: int
    """Limit of the answer."""
    expected_tokens: int
    """Usual length of the answer: for cost estimates."""
    subject: Any = field(default=None, compare=False)
    """What is asked about (questions.py), for simulated teachers. Never sent."""
    structure: Structure | None = field(default=None, compare=False)
    """None: the answer is text."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    prompt_tokens: int
    completion_tokens: int


class NoAnswer(Exception):
    """An attempt without an answer, or with a broken one. The question is asked again, `teacher.retries` times at most."""

    def __init__(self, cause: str, message: str, wait: float | None = None) -> None:
        """
        Args:
            cause: one to three words, by which failures are counted.
            message: what happened.
            wait: seconds until the next attempt; beyond `teacher.longest_wait` the job ends. None: a time that doubles from
                attempt to attempt.
        """
        super().__init__(message)
        self.cause, self.wait = cause, wait

    def __reduce__(self) -> tuple[Any, ...]:
        return NoAnswer, (self.cause, str(self), self.wait)


class Refused(Exception):
    """The teacher refuses this question (too long, against its rules). It may answer others."""


class Unusable(Refused):
    """An answer without usable content: empty, nothing but thoughts, no list. Counts as refused, and is never cached."""

    def __init__(self, message: str, read: int = 0, written: int = 0) -> None:
        """read, written: tokens of the question and of the answer, which are paid for."""
        super().__init__(message)
        self.read, self.written = read, written


@runtime_checkable
class Teacher(Protocol):
    """A black box that answers questions: what `teacher._target_` names.

    A class of your own gets `teacher.options` as keyword arguments and, if it has parameters of these names, `common` (the
    TeacherConfig), `seed` (data.seed) and `sizes` (split -> conversations, None: all). It is built before it is asked
    anything: load models and open connections in the first `answer`. Retries, concurrency, limits per minute and the answer
    cache are the interview's.
    """

    identity: str
    """Everything that decides an answer besides the question: model, endpoint, sampling options. Part of the cache key."""

    async def answer(self, question: Question) -> Answer:
        """Answer a question. Called concurrently from one event loop.

        For `kind` "recommend" the text is a list, one `Title (Year)` a line; "judge": `NUMBER: SCORE` lines or a JSON
        object {"NUMBER": SCORE}, scores -2 to 2; "describe": a JSON object {"item": NUMBER, "genres": [...], "keywords":
        [...], "plot": "..."} for each item. Unreadable parts are asked for again, then left out.

        Raises:
            NoAnswer: asking again may help.
            Refused, Unusable: another question may be answered.
            UserError: no question can be answered (no such model, invalid key).
        """
        ...

    async def close(self) -> None:
        """Close connections and stop processes, in the same event loop. The teacher may be asked again afterwards."""
        ...


def make_teacher(cfg: TeacherConfig, *, seed: int, sizes: Mapping[str, int | None]) -> Teacher:
    """Build the teacher that `cfg` names. Nothing is started or asked yet.

    Args:
        seed, sizes: of simulated data: which conversations the teacher is asked about.
    """
    own = type(cfg) is TeacherConfig  # no schema of ours: a class of the user's
    node = {TARGET: cfg._target_, **cfg.options} if own else cfg
    return build(node, "teacher", Teacher, common=cfg, seed=seed, sizes=dict(sizes))
