"""Requests from many threads, answered by one engine that a thread of its own owns."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from typing import Literal

from convrec_r1.base.errors import UserError
from convrec_r1.serve.planner import Plan, Planner
from convrec_r1.serve.request import Recommendation, Request
from convrec_r1.serve.stepper import Stepper, Written

_log = logging.getLogger(__name__)

State = Literal["waiting", "written", "done", "cancelled", "failed"]
Listener = Callable[["Recommendation | None"], object]


class Busy(Exception):
    """Too many requests are unanswered: ask again later."""


class Closed(Exception):
    """The session takes no requests any more."""


class Reply:
    """The answer to one request: recommendations, each as soon as its line is complete.

    Iterate over it (`for`, or `async for`), wait for all with `result`, or be called with `listen`; several may do so. A reply
    that failed raises what failed, and one that was cancelled `concurrent.futures.CancelledError`.
    """

    def __init__(self, plan: Plan, cancel: Callable[[Reply], None]) -> None:
        self.n = plan.n
        """Recommendations that were asked for."""
        self.state: State = "waiting"
        self.prompt_tokens = len(plan.job.prompt)
        self.started = time.monotonic()
        self.finish_reason: Literal["stop", "length"] | None = None
        """stop: the list has ended. length: at its limit of tokens. None: it is not done."""
        self.seconds: float | None = None
        """From the request to its last recommendation. None: it is not done."""
        self._plan, self._cancel = plan, cancel
        self._notes = list(plan.notes)
        self._found: list[Recommendation] = []
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._listeners: list[Listener] = []

    def __iter__(self) -> Iterator[Recommendation]:
        place = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda place=place: len(self._found) > place or self.done())
                new = self._found[place:]
            yield from new
            place += len(new)
            if not new:
                self._raise()
                return

    async def __aiter__(self) -> AsyncIterator[Recommendation]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()
        self.listen(lambda found: loop.call_soon_threadsafe(queue.put_nowait, found))
        while (found := await queue.get()) is not None:
            yield found
        self._raise()

    def listen(self, listener: Listener) -> None:
        """Call `listener` with each recommendation, those so far included, and with None at the end.

        Calls come from the session's thread, or from this one: they must be short, and must not raise.
        """
        with self._changed:
            for found in self._found:
                listener(found)
            if self.done():
                listener(None)
            else:
                self._listeners.append(listener)

    def result(self, timeout: float | None = None) -> list[Recommendation]:
        """Wait for the whole list. Raises TimeoutError after `timeout` seconds; the list is written on."""
        with self._changed:
            if not self._changed.wait_for(self.done, timeout):
                raise TimeoutError(f"no answer within {timeout:g} s")
            self._raise()
            return list(self._found)

    def cancel(self) -> None:
        """Do not write the rest of the list. Without meaning once it is done."""
        self._cancel(self)

    def done(self) -> bool:
        """Whether nothing will be added."""
        return self.state not in ("waiting", "written")

    @property
    def completion_tokens(self) -> int:
        """Tokens that are written so far."""
        return len(self._plan.reader.ids)

    @property
    def text(self) -> str:
        """The list as the policy wrote it, so far."""
        return self._plan.reader.text(self._plan.reader.ids)

    @property
    def notes(self) -> list[str]:
        """What the user should know: what was left out of the request, and why the list has fewer items than asked for."""
        return list(self._notes)

    def _take(self, written: Written) -> None:
        """Take in what a step wrote, in the session's thread."""
        reader = self._plan.reader
        found = list(reader.add(written.tokens, written.logprobs, written.finished))
        with self._changed:
            if self.done():
                return
            self.state = "written"
            self._found += found
            for listener in self._listeners:
                for one in found:
                    listener(one)
            if written.finished:
                self.finish_reason = written.finished
                self._notes += _shortfall(self, len(self._found))
                self._end("done")
            self._changed.notify_all()

    def _stop(self, state: State, error: BaseException | None = None) -> None:
        with self._changed:
            if not self.done():
                self._error = error
                self._end(state)
                self._changed.notify_all()

    def _end(self, state: State) -> None:
        self.state, self.seconds = state, time.monotonic() - self.started
        for listener in self._listeners:
            listener(None)
        self._listeners.clear()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
        if self.state == "cancelled":
            raise CancelledError("the request was cancelled")


def _shortfall(reply: Reply, found: int) -> list[str]:
    if found >= reply.n:
        return []
    plan = reply._plan
    if plan.reader.cut:
        why = f"the list reached its limit of {plan.job.sampling.max_tokens} tokens"
    elif plan.job.opening is not None:
        why = "no more items are left by the catalog, the condition and what is excluded"
    elif plan.reader.dropped:
        why = f"{plan.reader.dropped} lines were repeated, seen or excluded (constraint=none)"
    else:
        why = "the policy wrote no more lines"
    return [f"{found} of {reply.n}: {why}."]


class Session:
    """An engine that answers requests. Any thread may submit. Close it at the end.

    Requests that wait together share a batch, as far as the engine allows.
    """

    def __init__(self, planner: Planner, stepper: Stepper, *, limit: int = 256) -> None:
        """limit: unanswered requests from which on `submit` raises Busy."""
        self.planner, self.stepper, self.limit = planner, stepper, limit
        self._changed = threading.Condition()
        self._new: dict[int, Reply] = {}
        self._active: dict[int, Reply] = {}
        self._aborted: list[int] = []
        self._closing = False
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="convrec-r1 session", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Reply:
        """Ask for a list. Returns at once.

        Raises:
            UserError: the request cannot be answered.
            Busy: `limit` requests are unanswered.
            Closed: after `close`.
        """
        if self._closing:
            raise Closed("the session is closed")
        if self.unanswered >= self.limit:
            raise Busy(f"{self.limit} requests are unanswered")
        plan = self.planner.plan(request)
        with self._changed:
            if self._closing:
                raise Closed("the session is closed")
            if self.unanswered >= self.limit:
                raise Busy(f"{self.limit} requests are unanswered")
            key, self._count = self._count, self._count + 1
            reply = Reply(plan, lambda reply: self._cancel(key, reply))
            self._new[key] = reply
            self._changed.notify()
        return reply

    @property
    def unanswered(self) -> int:
        """Requests without a complete answer."""
        return len(self._new) + len(self._active)

    @property
    def waiting(self) -> int:
        """Those of which nothing is written yet."""
        with self._changed:
            return sum(reply.state == "waiting" for reply in (*self._new.values(), *self._active.values()))

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def close(self, *, wait: bool = True) -> None:
        """Take no more requests, answer what is under way, and close the engine. May be called twice.

        wait: False: cancel what is under way.
        """
        with self._changed:
            self._closing = True
            replies = [*self._new.items(), *self._active.items()]
            self._changed.notify()
        if not wait:
            for key, reply in replies:
                self._cancel(key, reply)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cancel(self, key: int, reply: Reply) -> None:
        with self._changed:
            if self._new.pop(key, None) is None and self._active.pop(key, None) is not None:
                self._aborted.append(key)
            self._changed.notify()
        reply._stop("cancelled")

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    self._advance()
                except Exception as error:
                    _log.exception("The engine failed")
                    self._fail(error)
        finally:
            self.stepper.close()

    def _wait(self) -> bool:
        """Wait until there is something to do. Return False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._new or self._active or self._aborted or self._closing)
            return bool(self._new or self._active or not self._closing)

    def _advance(self) -> None:
        """Hand over what is new to the engine, and let it write."""
        with self._changed:
            new, self._new = self._new, {}
            aborted, self._aborted = self._aborted, []
            self._active |= new
        for key in aborted:
            self.stepper.abort(key)
        for key, reply in new.items():
            self.stepper.add(key, reply._plan.job)
        for written in self.stepper.step():
            reply = self._active.get(written.key)
            if reply is None:
                continue  # cancelled meanwhile
            reply._take(written)
            if written.finished:
                with self._changed:
                    self._active.pop(written.key, None)

    def _fail(self, error: Exception) -> None:
        """Report a failed step to everyone who waits for it."""
        with self._changed:
            failed, self._active, self._aborted = self._active, {}, []
        self.stepper.reset()
        for reply in failed.values():
            # One exception for each: several threads would add their traces to a shared one.
            shown = (
                UserError(str(error)) if isinstance(error, UserError) else RuntimeError(f"The engine failed: {error}")
            )
            shown.__cause__ = error
            reply._stop("failed", shown)
