"""What a teacher is, and what may go wrong with one."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["recommend", "describe", "judge"]


class Chat(NamedTuple):
    """A message of a question. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Question:
    """What is asked of a teacher. The same messages with the same limit are the same question."""

    kind: Kind
    messages: tuple[Chat, ...]
    max_tokens: int
    """Of the answer, at most."""
    expected_tokens: int
    """Of the answer, roughly: for estimates of cost."""
    subject: Any = field(default=None, compare=False)
    """What it is about (questions.py). A simulated teacher reads it; it is never sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    prompt_tokens: int
    completion_tokens: int
    cut_off: bool = False
    """Whether it ended at `max_tokens`."""


class TeacherFault(Exception):
    """No answer, or none of use, and to ask again may help: the rate limit, a failure there, a broken connection."""

    def __init__(self, cause: str, message: str, retry_after: float | None = None) -> None:
        """cause: a word or two, by which faults are counted.  retry_after: seconds, where the teacher said so."""
        super().__init__(message)
        self.cause, self.retry_after = cause, retry_after


class TeacherRefusal(Exception):
    """The teacher will not take this very question (too long for it, against its rules); others it may."""


class Teacher(Protocol):
    """A black box that answers questions."""

    identity: str
    """All that decides an answer beside the question: which model, where, sampled how. Part of the cache's key."""

    async def answer(self, question: Question) -> Answer:
        """Raises TeacherFault where another try may help, TeacherRefusal where another question may, UserError where neither
        can (no such model, a wrong key). Called for several questions at a time, within one event loop."""
        ...

    async def close(self) -> None:
        """End what was opened and started for it, within the same event loop; it may be asked again."""
        ...
