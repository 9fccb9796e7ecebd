"""Ask a teacher many questions concurrently, each once. Answers are cached and counted."""

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aiolimiter import AsyncLimiter
from filelock import FileLock, Timeout

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import Bar, bar
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers import cost
from convrec_r1.distill.teachers.base import Answer, BrokenAnswer, NoAnswer, Question, Refused, Teacher
from convrec_r1.distill.teachers.cache import AnswerCache, characters

_log = logging.getLogger(__name__)

_REFUSED = 3
"""Refusals, before any answer, from which the teacher is taken to refuse everything."""


@dataclass
class KindCounts:
    """Questions of one kind. Tokens are those of all answers; `paid` tokens those of this run's."""

    asked: int = 0
    from_cache: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    paid_prompt_tokens: int = 0
    paid_completion_tokens: int = 0


@dataclass
class Counts:
    """Questions, tokens and retries: for progress and the card."""

    cfg: TeacherConfig
    kinds: dict[str, KindCounts] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    """Cause -> failed attempts that were followed by another one."""

    def of(self, question: Question) -> KindCounts:
        return self.kinds.setdefault(question.kind, KindCounts())

    def add(self, question: Question, answer: Answer, *, paid: bool) -> None:
        kind = self.of(question)
        kind.asked += paid
        kind.from_cache += not paid
        kind.prompt_tokens += answer.prompt_tokens
        kind.completion_tokens += answer.completion_tokens
        kind.paid_prompt_tokens += paid * answer.prompt_tokens
        kind.paid_completion_tokens += paid * answer.completion_tokens
        self.retries.update(answer.retried if paid else ())

    def as_dict(self) -> dict[str, Any]:
        """kinds: {kind: asked, from_cache, refused, prompt_tokens, completion_tokens, cost_now, cost}, retries: {cause: n}.

        Costs are US dollars of this run's questions and of all answers. None: prices are not known.
        """
        kinds = {}
        for name, kind in self.kinds.items():
            kinds[name] = {key: value for key, value in asdict(kind).items() if not key.startswith("paid")} | {
                "cost_now": cost.price(kind.paid_prompt_tokens, kind.paid_completion_tokens, self.cfg),
                "cost": cost.price(kind.prompt_tokens, kind.completion_tokens, self.cfg),
            }
        return {"kinds": kinds, "retries": dict(self.retries)}

    def paid(self) -> str:
        """Tokens and cost of this run so far, in words."""
        read = sum(kind.paid_prompt_tokens for kind in self.kinds.values())
        written = sum(kind.paid_completion_tokens for kind in self.kinds.values())
        return cost.in_words(read, written, self.cfg)


class Interview:
    """Asks `teacher` what `cache` does not know, as fast as `cfg` allows. A context manager; closes the teacher at its end."""

    def __init__(self, teacher: Teacher, cache: AnswerCache, cfg: TeacherConfig) -> None:
        self.teacher, self.cache, self.cfg = teacher, cache, cfg
        self.counts = Counts(cfg)
        per_minute = cfg.requests_per_minute
        self._requests = AsyncLimiter(1, 60 / per_minute) if per_minute else None  # evenly, without bursts
        self._tokens = AsyncLimiter(cfg.tokens_per_minute / 60, 1) if cfg.tokens_per_minute else None
        self._runner = asyncio.Runner()  # one event loop: connections stay open between calls of `ask`

    def __enter__(self) -> "Interview":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self.teacher.close())
        finally:
            self._runner.close()

    def ask(self, questions: Sequence[Question], title: str) -> list[Answer]:
        """Return the answer to each question, in order. Equal questions are asked once.

        Answers are cached as they arrive. A question that the teacher refuses while it answers others has an empty answer,
        which is counted and not cached.

        Raises UserError if no question can be asked, if all are refused, and, after all others were asked, for questions
        without an answer: the same command then asks only those.
        """
        known = dict(zip(questions, self.cache.find(self.teacher.identity, questions), strict=True))
        if any(answer is None for answer in known.values()):
            with _held(self.cache.asking(self.teacher.identity), title):
                self._ask_missing(known, title)
        else:
            self._count_known(known)
        return [answer for question in questions if (answer := known[question]) is not None]

    def _ask_missing(self, known: dict[Question, Answer | None], title: str) -> None:
        missing = [question for question, answer in known.items() if answer is None]
        # Another process may have asked them while this one waited for the lock.
        known |= zip(missing, self.cache.find(self.teacher.identity, missing), strict=True)
        self._count_known(known)
        missing = [question for question in missing if known[question] is None]
        if not missing:
            return
        before = len(known) - len(missing)
        expected = cost.estimate(missing, self.cache, self.teacher.identity)
        words = cost.in_words(expected.prompt_tokens, expected.completion_tokens, self.cfg)
        _log.info("%s: %d questions, %d answered before; the others take about %s", title, len(known), before, words)
        with bar(title, len(known), before) as progress:
            session = _Session(self, missing, before, progress)
            self._runner.run(session.run())
        if session.failures:
            raise UserError(session.unanswered())
        known |= session.answers

    async def take(self, requests: int, tokens: float) -> None:
        """Wait until so many requests and tokens are within the limits per minute."""
        for _ in range(requests if self._requests else 0):
            assert self._requests is not None
            await self._requests.acquire()
        while self._tokens is not None and tokens > 0:
            part = min(tokens, self._tokens.max_rate)
            await self._tokens.acquire(part)
            tokens -= part

    def _count_known(self, known: dict[Question, Answer | None]) -> None:
        for question, answer in known.items():
            if answer is not None:
                self.counts.add(question, answer, paid=False)


class _Session:
    """The questions of one call of `ask`."""

    def __init__(self, interview: Interview, questions: list[Question], known: int, progress: Bar) -> None:
        """known: questions of the same call that were answered before."""
        self.interview, self.known, self.progress = interview, known, progress
        self.waiting = deque(questions)
        self.answers: dict[Question, Answer] = {}
        self.refusals: list[Refused] = []
        self.failures: list[NoAnswer] = []
        """One for each question without an answer."""
        self.failed_in_a_row = 0
        self.fatal: UserError | None = None
        """Why no more questions are asked. Those in flight are still awaited: they may be paid for."""

    @property
    def given_up(self) -> bool:
        return self.fatal is not None or self.failed_in_a_row >= max(3, self.interview.cfg.concurrency)

    async def run(self) -> None:
        workers = min(self.interview.cfg.concurrency, len(self.waiting))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if self.refusals and self._refuses_all() and not self.failures:
            self.fatal = self.fatal or _all_refused(self.refusals)
        if self.fatal:
            raise self.fatal

    async def _work(self) -> None:
        while self.waiting and not self.given_up:
            try:
                await self._settle(self.waiting.popleft())
            except UserError as error:
                self.fatal = self.fatal or error

    async def _settle(self, question: Question) -> None:
        """Ask until there is an answer, a refusal, or no retry left."""
        interview = self.interview
        reserved = characters(question) / 4 + question.expected_tokens
        broken: list[str] = []
        tries = 0
        while True:
            await interview.take(1, reserved)
            try:
                answer = await interview.teacher.answer(question)
                break
            except Refused as refusal:
                return self._refuse(question, refusal)
            except NoAnswer as failure:
                if not isinstance(failure, BrokenAnswer) or tries >= interview.cfg.retries or self.given_up:
                    self.failures.append(failure)
                    self.failed_in_a_row += 1
                    return None
                broken += [*failure.retried, failure.cause]
                tries += 1
        interview.cache.add(interview.teacher.identity, question, answer)  # before anything else can fail
        interview.counts.retries.update(broken)
        interview.counts.add(question, answer, paid=True)
        self.answers[question] = answer
        self.failed_in_a_row = 0
        self.progress.advance(1, interview.counts.paid())
        await interview.take(0, answer.prompt_tokens + answer.completion_tokens - reserved)

    def _refuse(self, question: Question, refusal: Refused) -> None:
        if not self.refusals:
            _log.warning("A question is refused and has an empty answer, as all refused ones: %s", refusal)
        self.refusals.append(refusal)
        self.answers[question] = Answer("", 0, 0)
        if len(self.refusals) >= _REFUSED and self._refuses_all():
            raise _all_refused(self.refusals)
        self.interview.counts.of(question).refused += 1
        self.progress.advance(1)

    def _refuses_all(self) -> bool:
        return not self.known and len(self.answers) == len(self.refusals)

    def unanswered(self) -> str:
        causes = Counter(failure.cause for failure in self.failures)
        missing = len(self.failures) + len(self.waiting)
        cfg, cache = self.interview.cfg, self.interview.cache
        tried = f"{len(self.failures)} were asked up to {cfg.retries + 1} times each"
        if self.given_up:
            tried += ", all in a row, and the rest was not asked"
        return (
            f"{missing} of {missing + len(self.answers)} questions have no answer: {tried} "
            f"({', '.join(f'{count} x {cause}' for cause, count in causes.most_common())}; the last: {self.failures[-1]}). "
            f"Answers are kept in {cache.path}: the same command asks only the rest. If it happens again, lower "
            "teacher.concurrency or teacher.requests_per_minute, or raise teacher.timeout or teacher.retries."
        )


@contextlib.contextmanager
def _held(lock: FileLock, title: str) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s: another run is asking this teacher; waiting for its answers", title)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _all_refused(refusals: list[Refused]) -> UserError:
    return UserError(
        f"The teacher refuses every question ({len(refusals)} so far): {refusals[-1]}. Check teacher.*; if questions are too "
        "long for the model, lower distill.reflect.per_question and distill.describe_batch."
    )
