"""Ask a teacher many questions concurrently, each once. Answers are cached and counted."""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from aiolimiter import AsyncLimiter

from convrec_r1.base.errors import UserError
from convrec_r1.base.locks import Timeout
from convrec_r1.base.progress import Bar, bar
from convrec_r1.distill.answers import unusable
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers import cost
from convrec_r1.distill.teachers.base import THINKS, Answer, NoAnswer, Question, Refused, Teacher, Unusable
from convrec_r1.distill.teachers.cache import AnswerCache, characters
from convrec_r1.lists import strip_thoughts

_log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before a question is asked again, doubled from try to try, unless the teacher names a time."""
_REFUSED = 3
"""Refusals from which `teacher.most_refused` counts. If no answer came before them, the teacher refuses everything."""
_REPORTED = 10.0
"""Shortest wait that is reported, in seconds."""
_EMPTY = "empty answer"


class Counts:
    """Questions, tokens and retries: for progress and the card."""

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Kind of question -> asked, from_cache, refused, tokens of all answers, and of this run's (paid)."""
        self.retries: Counter[str] = Counter()
        """Cause -> failed attempts that were followed by an answer."""

    def add(self, question: Question, answer: Answer, *, paid: bool) -> None:
        self._count(question, "asked" if paid else "from_cache", answer.prompt_tokens, answer.completion_tokens, paid)

    def refused(self, question: Question, refusal: Refused) -> None:
        read, written = (refusal.read, refusal.written) if isinstance(refusal, Unusable) else (0, 0)
        self._count(question, "refused", read, written, True)

    def _count(self, question: Question, how: str, read: int, written: int, paid: bool) -> None:
        counts = {how: 1, "prompt_tokens": read, "completion_tokens": written}
        self.kinds[question.kind].update(counts | ({"paid_in": read, "paid_out": written} if paid else {}))

    def as_dict(self) -> dict[str, Any]:
        """kinds: {kind: asked, from_cache, refused, prompt_tokens, completion_tokens, cost_now, cost}, retries: {cause: n}.

        Costs are US dollars of this run's questions and of all answers. None: prices are not known.
        """
        shown = ("asked", "from_cache", "refused", "prompt_tokens", "completion_tokens")
        kinds = {
            name: {key: kind[key] for key in shown}
            | {
                "cost_now": cost.price(kind["paid_in"], kind["paid_out"], self.cfg),
                "cost": cost.price(kind["prompt_tokens"], kind["completion_tokens"], self.cfg),
            }
            for name, kind in self.kinds.items()
        }
        return {"kinds": kinds, "retries": dict(self.retries)}

    def paid(self) -> str:
        """Tokens and cost of this run so far, in words."""
        read, written = (sum(kind[name] for kind in self.kinds.values()) for name in ("paid_in", "paid_out"))
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

        Answers are cached as they arrive, and returned without thoughts. A question that the teacher refuses, or answers with
        nothing usable, has an empty answer, which is counted and not cached.

        Raises UserError if no question can be asked, if more than `cfg.most_refused` are refused, if the teacher asks to wait
        longer than `cfg.longest_wait`, and, after all others were asked, for questions without an answer: the same command
        then asks only those.
        """
        known = self._known(questions)
        with contextlib.ExitStack() as stack:
            if None in known.values():
                stack.enter_context(self._asking(title))
                known |= self._known([question for question, answer in known.items() if answer is None])
            for question, answer in known.items():
                if answer is not None:
                    self.counts.add(question, answer, paid=False)
            missing = [question for question, answer in known.items() if answer is None]
            answers = {**known, **self._ask(missing, len(known) - len(missing), title)} if missing else known
        found = [answer for question in questions if (answer := answers[question]) is not None]
        return [replace(answer, text=strip_thoughts(answer.text)) for answer in found]

    async def take(self, requests: int, tokens: float) -> None:
        """Wait until so many requests and tokens are within the limits per minute."""
        if requests and self._requests:
            await self._requests.acquire(requests)
        while self._tokens is not None and tokens > 0:
            part = min(tokens, self._tokens.max_rate)
            await self._tokens.acquire(part)
            tokens -= part

    def _known(self, questions: Sequence[Question]) -> dict[Question, Answer | None]:
        return dict(zip(questions, self.cache.find(self.teacher.identity, questions), strict=True))

    @contextlib.contextmanager
    def _asking(self, title: str) -> Iterator[None]:
        """Wait until no other process asks this teacher."""
        identity = self.teacher.identity
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.cache.asking(identity, timeout=0))
            except Timeout:
                _log.info("%s: another run is asking this teacher; waiting for its answers", title)
                stack.enter_context(self.cache.asking(identity))
            yield

    def _ask(self, missing: list[Question], before: int, title: str) -> dict[Question, Answer]:
        expected = cost.estimate(missing, self.cache, self.teacher.identity)
        words = cost.in_words(expected.prompt_tokens, expected.completion_tokens, self.cfg)
        total = before + len(missing)
        _log.info("%s: %d questions, %d answered before; the others take about %s", title, total, before, words)
        with bar(title, total, before) as progress:
            session = _Session(self, missing, before, progress)
            self._runner.run(session.run())
        return session.answers


class _Session:
    """The questions of one call of `ask` that the cache does not know."""

    def __init__(self, interview: Interview, questions: list[Question], known: int, progress: Bar) -> None:
        """known: questions of the same call that were answered before."""
        self.interview, self.known, self.progress = interview, known, progress
        self.waiting = deque(questions)
        self.total = known + len(questions)
        self.answers: dict[Question, Answer] = {}
        self.refusals: list[Refused] = []
        self.failures: list[NoAnswer] = []
        """One for each question without an answer."""
        self.failed_in_a_row = 0
        self.fatal: UserError | None = None
        """Why no more questions are asked. Those in flight are still awaited: they may be paid for."""
        self.over = asyncio.Event()
        """Set with `fatal`: nobody waits for another attempt."""
        self.reported_until = 0.0

    @property
    def given_up(self) -> bool:
        return self.fatal is not None or self.failed_in_a_row >= max(3, self.interview.cfg.concurrency)

    async def run(self) -> None:
        """Ask all questions. Raises UserError, see `Interview.ask`."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.interview.cfg.concurrency, len(self.waiting))):
                    group.create_task(self._work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        if not self.failures:
            self._check_refusals(least=1)
        if self.refusals:
            _log.warning(
                "%d of %d questions have no usable answer, and count as answered with nothing. The last: %s",
                *(len(self.refusals), self.known + len(self.answers), self.refusals[-1]),
            )
        if self.fatal or self.failures:
            raise self.fatal or self._unanswered()

    async def _work(self) -> None:
        while self.waiting and not self.given_up:
            question = self.waiting.popleft()
            try:
                self.answers[question] = await self._settle(question)
                self.progress.advance(1, self.interview.counts.paid())
            except Refused as refusal:
                self.refusals.append(refusal)
                self.answers[question] = Answer("", 0, 0)
                self.interview.counts.refused(question, refusal)
                self.progress.advance(1, self.interview.counts.paid())
                self._check_refusals(least=_REFUSED)
            except NoAnswer as failure:
                self.failures.append(failure)
                self.failed_in_a_row += 1
            except UserError as error:
                self._end(error)

    def _end(self, error: UserError) -> None:
        self.fatal = self.fatal or error
        self.over.set()

    async def _settle(self, question: Question) -> Answer:
        """Ask until there is an answer or no retry left."""
        interview = self.interview
        reserved = characters(question) / 4 + question.expected_tokens
        causes: list[str] = []
        while True:
            await interview.take(1, reserved)
            try:
                answer = await interview.teacher.answer(question)
                why = unusable(question.kind, answer.text)
                if why is None:
                    break
                if answer.text.strip() or _EMPTY in causes or not interview.cfg.retries:
                    advice = "" if strip_thoughts(answer.text).strip() else f". {THINKS}"
                    raise Unusable(why + advice, answer.prompt_tokens, answer.completion_tokens)
                causes.append(_EMPTY)  # may be an accident of the endpoint: asked once more
            except NoAnswer as failure:
                self._check_wait(failure)
                if len(causes) >= interview.cfg.retries or self.given_up:
                    raise
                backoff = min(FIRST_WAIT * 2 ** len(causes), LONGEST_WAIT) * random.uniform(0.75, 1)
                causes.append(failure.cause)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.over.wait(), backoff if failure.wait is None else failure.wait)
        interview.cache.add(interview.teacher.identity, question, answer)  # before anything else can fail
        interview.counts.retries.update(causes)
        interview.counts.add(question, answer, paid=True)
        self.failed_in_a_row = 0
        await interview.take(0, answer.prompt_tokens + answer.completion_tokens - reserved)
        return answer

    def _check_wait(self, failure: NoAnswer) -> None:
        """Report a long wait, once for all questions that wait. Raises UserError beyond `teacher.longest_wait`."""
        seconds, cfg, now = failure.wait or 0.0, self.interview.cfg, time.monotonic()
        if seconds > cfg.longest_wait:
            raise UserError(
                f"The teacher asks to wait {seconds:.0f} s ({failure}), longer than teacher.longest_wait={cfg.longest_wait:g}. "
                f"Answers so far are kept in {self.interview.cache.path}: the same command asks the rest, after that "
                "time or with another teacher.api_key_env."
            )
        if seconds >= _REPORTED and now >= self.reported_until:
            self.reported_until = now + seconds
            _log.warning("The teacher asks to wait %.0f s (%s)", seconds, failure)

    def _check_refusals(self, least: int) -> None:
        """End the job if `least` or more questions are refused and none is answered, or more than `teacher.most_refused`."""
        refused, cfg = len(self.refusals), self.interview.cfg
        none = refused >= least and not self.known and len(self.answers) == refused
        few = refused < _REFUSED and cfg.most_refused > 0
        if cfg.most_refused >= 1 or (not none and (few or refused <= cfg.most_refused * self.total)):
            return
        verb = "gives no usable answer to" if isinstance(self.refusals[-1], Unusable) else "refuses"
        which = f"every question ({refused} so far)" if none else f"{refused} of {self.total} questions"
        limit = "" if none else f" More than teacher.most_refused={cfg.most_refused:g} of all end the job."
        self._end(
            UserError(
                f"The teacher {verb} {which}. The last: {self.refusals[-1]}.{limit} Check teacher.*; if questions are too long "
                "for the model, lower distill.reflect.per_question and distill.describe_batch."
            )
        )

    def _unanswered(self) -> UserError:
        causes = Counter(failure.cause for failure in self.failures)
        missing = len(self.failures) + len(self.waiting)
        tried = f"{len(self.failures)} were asked up to {self.interview.cfg.retries + 1} times each"
        if self.given_up:
            tried += ", all in a row, and the rest was not asked"
        return UserError(
            f"{missing} of {missing + len(self.answers)} questions have no answer: {tried} "
            f"({', '.join(f'{count} x {cause}' for cause, count in causes.most_common())}; the last: {self.failures[-1]}). "
            f"Answers are kept in {self.interview.cache.path}: the same command asks only the rest. If it happens again, lower "
            "teacher.concurrency or teacher.requests_per_minute, or raise teacher.timeout or teacher.retries."
        )
