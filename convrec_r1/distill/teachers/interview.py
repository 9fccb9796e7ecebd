"""Asking a teacher: many questions at a time, each answered once, kept, and counted."""

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import Bar, bar
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers import cost
from convrec_r1.distill.teachers.base import Answer, Question, Teacher, TeacherFault, TeacherRefusal
from convrec_r1.distill.teachers.cache import AnswerCache, characters
from convrec_r1.distill.teachers.pace import Gate, Limit, backoff

_log = logging.getLogger(__name__)

_REFUSED = 3
"""Refusals, before any answer, from which the fault is not in single questions."""


@dataclass
class KindCounts:
    asked: int = 0
    """Questions that this run asked; answered ones only."""
    from_cache: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    """Of all answers, those from the cache too."""
    completion_tokens: int = 0
    paid_prompt_tokens: int = 0
    """Of what this run asked."""
    paid_completion_tokens: int = 0


@dataclass
class Counts:
    """What was asked and what it took: for progress and the data card."""

    cfg: TeacherConfig
    kinds: dict[str, KindCounts] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    """Cause of a fault -> how often a question was asked again for it."""

    def of(self, question: Question) -> KindCounts:
        return self.kinds.setdefault(question.kind, KindCounts())

    def add(self, question: Question, answer: Answer, *, paid: bool) -> None:
        kind = self.of(question)
        kind.prompt_tokens += answer.prompt_tokens
        kind.completion_tokens += answer.completion_tokens
        if paid:
            kind.asked += 1
            kind.paid_prompt_tokens += answer.prompt_tokens
            kind.paid_completion_tokens += answer.completion_tokens
        else:
            kind.from_cache += 1

    def as_dict(self) -> dict[str, Any]:
        """kinds: {kind: asked, from_cache, refused, prompt_tokens, completion_tokens, cost_now, cost}, retries: {cause: times}.

        Costs are US dollars, None where prices are not known: of what this run asked, and of all its answers.
        """
        kinds = {
            name: {
                "asked": kind.asked,
                "from_cache": kind.from_cache,
                "refused": kind.refused,
                "prompt_tokens": kind.prompt_tokens,
                "completion_tokens": kind.completion_tokens,
                "cost_now": cost.price(kind.paid_prompt_tokens, kind.paid_completion_tokens, self.cfg),
                "cost": cost.price(kind.prompt_tokens, kind.completion_tokens, self.cfg),
            }
            for name, kind in self.kinds.items()
        }
        return {"kinds": kinds, "retries": dict(self.retries)}

    def paid(self) -> str:
        """What this run took so far, in words."""
        read = sum(kind.paid_prompt_tokens for kind in self.kinds.values())
        written = sum(kind.paid_completion_tokens for kind in self.kinds.values())
        return cost.worded(read, written, self.cfg)


class Interview:
    """Asks `teacher`, as fast as `cfg` allows, what `cache` does not know. A context manager, at whose end the teacher goes."""

    def __init__(self, teacher: Teacher, cache: AnswerCache, cfg: TeacherConfig) -> None:
        self.teacher, self.cache, self.cfg = teacher, cache, cfg
        self.counts = Counts(cfg)
        self._requests, self._tokens = Limit(cfg.requests_per_minute), Limit(cfg.tokens_per_minute)
        self._gate = Gate()
        self._runner = asyncio.Runner()  # one event loop for all, as connections stay open between calls of `ask`

    def __enter__(self) -> "Interview":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self.teacher.close())
        finally:
            self._runner.close()

    def ask(self, questions: Sequence[Question], title: str) -> list[Answer]:
        """The answer to each question, in their order. The same question twice is asked once.

        A fault is tried again, `cfg.retries` times a question. Answers are kept as they come. A question that the teacher
        refuses, while it answers others, has an empty answer, which is counted and not kept.

        Raises UserError where the teacher cannot be asked at all, where it refuses everything, and, after all others were
        asked, for questions that found no answer: the same command then asks only those again.
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
        # What another process found out while this one waited for its turn is not asked again.
        known |= zip(missing, self.cache.find(self.teacher.identity, missing), strict=True)
        self._count_known(known)
        missing = [question for question in missing if known[question] is None]
        if not missing:
            return
        before = len(known) - len(missing)
        expected = cost.estimate(missing, self.cache, self.teacher.identity)
        words = cost.worded(expected.prompt_tokens, expected.completion_tokens, self.cfg)
        _log.info(
            "%s: %d questions, %d of them answered before; the others take about %s", title, len(known), before, words
        )
        with bar(title, len(known), before) as progress:
            session = _Session(self, missing, before, progress)
            self._runner.run(session.run())
        if session.faults:
            raise UserError(_unanswered(session, self))
        known |= session.answers

    async def _turn(self, tokens: float) -> None:
        """Wait until a question of so many tokens, answer included, may be asked."""
        await self._gate.passed()
        await self._requests.take()
        await self._tokens.take(tokens)
        await self._gate.passed()

    def _count_known(self, known: dict[Question, Answer | None]) -> None:
        for question, answer in known.items():
            if answer is not None:
                self.counts.add(question, answer, paid=False)


class _Session:
    """The questions of one call, on their way to the teacher."""

    def __init__(self, interview: Interview, questions: list[Question], known: int, progress: Bar) -> None:
        """known: questions of the same call that were answered before."""
        self.interview, self.known, self.progress = interview, known, progress
        self.waiting = deque(questions)
        self.answers: dict[Question, Answer] = {}
        self.refusals: list[TeacherRefusal] = []
        self.faults: list[TeacherFault] = []
        """Of questions that found no answer, the last one of each."""
        self.lost_in_a_row = 0
        self.hopeless: UserError | None = None
        """Why nobody can be asked any more. What is under way then still arrives: it may be paid for."""

    @property
    def given_up(self) -> bool:
        """Whether the teacher answers nobody any more: every one that asked in vain asked all its times."""
        return self.hopeless is not None or self.lost_in_a_row >= max(3, self.interview.cfg.concurrency)

    async def run(self) -> None:
        workers = min(self.interview.cfg.concurrency, len(self.waiting))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if self.refusals and self._refuses_all() and not self.faults:
            self.hopeless = self.hopeless or _all_refused(self.refusals)
        if self.hopeless:
            raise self.hopeless

    async def _work(self) -> None:
        while self.waiting and not self.given_up:
            try:
                await self._settle(self.waiting.popleft())
            except UserError as error:
                self.hopeless = self.hopeless or error

    async def _settle(self, question: Question) -> None:
        """Ask until there is an answer, a refusal, or no try left."""
        interview = self.interview
        faults = 0
        while True:
            reserved = characters(question) / 4 + question.expected_tokens
            await interview._turn(reserved)
            try:
                answer = await interview.teacher.answer(question)
            except TeacherRefusal as refusal:
                self._refuse(question, refusal)
                return
            except TeacherFault as fault:
                faults += 1
                if fault.retry_after is not None:
                    interview._gate.close_for(fault.retry_after)
                if faults > interview.cfg.retries or self.given_up:
                    self.faults.append(fault)
                    self.lost_in_a_row += 1
                    return
                interview.counts.retries[fault.cause] += 1
                await asyncio.sleep(backoff(faults))
            else:
                break
        interview._tokens.correct(answer.prompt_tokens + answer.completion_tokens - reserved)
        interview.cache.add(interview.teacher.identity, question, answer)  # before anything else may go wrong
        interview.counts.add(question, answer, paid=True)
        self.answers[question] = answer
        self.lost_in_a_row = 0
        self.progress.advance(1, interview.counts.paid())

    def _refuse(self, question: Question, refusal: TeacherRefusal) -> None:
        if not self.refusals:
            _log.warning("A question is refused and counts as answered with nothing, as others would: %s", refusal)
        self.refusals.append(refusal)
        self.answers[question] = Answer("", 0, 0)
        if len(self.refusals) >= _REFUSED and self._refuses_all():
            raise _all_refused(self.refusals)
        self.interview.counts.of(question).refused += 1
        self.progress.advance(1)

    def _refuses_all(self) -> bool:
        return not self.known and len(self.answers) == len(self.refusals)


@contextlib.contextmanager
def _held(lock: FileLock, title: str) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s: another run is asking this teacher; waiting for what it finds out", title)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _all_refused(refusals: list[TeacherRefusal]) -> UserError:
    return UserError(
        f"The teacher refuses every question ({len(refusals)} so far): {refusals[-1]}. Check teacher.*; if questions are too "
        "long for the model, lower distill.reflect.per_question and distill.describe_batch."
    )


def _unanswered(session: _Session, interview: Interview) -> str:
    causes = Counter(fault.cause for fault in session.faults)
    lost = len(session.faults) + len(session.waiting)
    tried = f"{len(session.faults)} were asked {interview.cfg.retries + 1} times each"
    if session.given_up:
        tried = f"after {tried} and none was answered any more, the rest was left"
    return (
        f"{lost} of {lost + len(session.answers)} questions found no answer: {tried} "
        f"({', '.join(f'{count} x {cause}' for cause, count in causes.most_common())}; the last: {session.faults[-1]}). "
        f"What was answered is kept in {interview.cache.path}: the same command asks for the rest only. If it happens "
        "again, lower teacher.concurrency or teacher.requests_per_minute, or raise teacher.timeout or teacher.retries."
    )
