"""The policies of a server, and what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic, time
from typing import TYPE_CHECKING, Literal

from convrec_r1.base.errors import UserError
from convrec_r1.serve.config import ServeConfig
from convrec_r1.serve.http.errors import FAILED, LIMITED, ApiError, unavailable
from convrec_r1.serve.http.feedback import Feedback
from convrec_r1.serve.http.metrics import Metrics
from convrec_r1.serve.http.titles import Titles
from convrec_r1.serve.request import Fields, Recommendation, Request

if TYPE_CHECKING:
    from convrec_r1.data.catalog import Catalog
    from convrec_r1.lists import Item
    from convrec_r1.serve.session import Reply, Session

_log = logging.getLogger(__name__)

Status = Literal["ready", "loading", "stopping", "failed"]


@dataclass(frozen=True)
class Served:
    """A policy that is served."""

    name: str
    session: Session
    n: int
    """Recommendations in a list where the request does not say."""
    constraint: Literal["none", "catalog"]
    catalog: Catalog | None
    fields: Mapping[Item, Fields]
    created: int = field(default_factory=lambda: int(time()))
    """When it was loaded, in seconds since 1970."""

    @classmethod
    def of(cls, name: str, session: Session, n: int | None = None) -> Served:
        """Return a session's policy under a name. n: None: as many as it was trained to give."""
        planner = session.planner
        held: Literal["none", "catalog"] = "none" if planner.constraint is None else "catalog"
        return cls(name, session, n or planner.settings.n, held, planner.known.catalog, planner.known.fields)

    @cached_property
    def titles(self) -> Titles:
        return Titles(self.catalog or ())


class Service:
    """Takes requests, passes them on to the policies' sessions, and counts them. All methods but those that say so are called
    in the server's event loop."""

    def __init__(self, cfg: ServeConfig, feedback: Feedback | None = None) -> None:
        """feedback: where thumbs are kept. None: they are not."""
        self.cfg, self.feedback = cfg, feedback
        self.models: dict[str, Served] = {}
        """By name. Empty while they are loaded."""
        self.under_way = 0
        """Requests for lists that are not answered to their end."""
        self.answered = 0
        """Lists that were written to their end."""
        self.given_up = 0
        """Requests that were cancelled at the end."""
        self.stopping = False
        self.metrics = Metrics(
            waiting=lambda: sum(served.session.waiting for served in self.models.values()),
            unanswered=lambda: sum(served.session.unanswered for served in self.models.values()),
        )
        self._submitting = ThreadPoolExecutor(4, "submit")  # long prompts take a while

    def open(self, models: Sequence[Served]) -> None:
        """Answer requests from now on. The first policy answers those that name none. Called by any thread."""
        self.models = {served.name: served for served in models}

    def stop(self) -> None:
        """Take no more requests. Called by any thread."""
        self.stopping = True

    @property
    def farewell(self) -> str:
        """What became of the requests, at the end."""
        left = f", {self.given_up} cancelled after {self.cfg.drain:g} s (serve.drain)" if self.given_up else ""
        return f"The server has ended: {self.answered:,} lists answered{left}."

    @property
    def status(self) -> Status:
        if self.stopping:
            return "stopping"
        if not self.models:
            return "loading"
        return "ready" if all(served.session.alive for served in self.models.values()) else "failed"

    def model(self, name: str | None = None) -> Served:
        """Return a policy by its name; without one, the first. Raises ApiError for others, and if none can answer."""
        self._check()
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(
                404, f"This server has no model of that name. It has: {', '.join(self.models)}.", "model_not_found"
            )
        return self.models[name]

    @contextlib.asynccontextmanager
    async def writing(self, served: Served, request: Request) -> AsyncIterator[Writing]:
        """Ask for a list. It is cancelled if it is not complete when the block ends.

        Raises:
            ApiError: the request cannot be answered (400), too much is under way (429), or the server stops (503).
        """
        self._check()
        if self.under_way >= self.cfg.limit:
            raise self._busy()
        self.under_way += 1
        writing = None
        try:
            writing = Writing(await self._submit(served.session, request), served, self.metrics)
            yield writing
        finally:
            self.under_way -= 1
            if writing is not None:
                self.answered += writing.end()

    def give_up(self) -> None:
        """Cancel what is under way: it is answered with 503. Called by any thread."""
        self.given_up = self.under_way
        for served in self.models.values():
            served.session.close(wait=False)

    def close(self) -> None:
        """Free everything, once the server has ended. Called by any thread."""
        self._submitting.shutdown(wait=False, cancel_futures=True)
        for served in self.models.values():
            served.session.close(wait=False)
        if self.feedback is not None:
            self.feedback.close()

    def _check(self) -> None:
        match self.status:
            case "loading":
                raise unavailable("The model is being loaded. Ask again in a moment.", "loading", 5)
            case "stopping":
                raise unavailable("The server is stopping.", "stopping", 5)
            case "failed":
                raise unavailable("The engine has ended. The server must be started again.", "engine_failed", 60)

    def _busy(self) -> ApiError:
        return ApiError(
            429,
            f"{self.under_way} requests are under way, and the server takes no more. Ask again in a moment.",
            "queue_full",
            LIMITED,
            {"Retry-After": "1"},
        )

    async def _submit(self, session: Session, request: Request) -> Reply:
        from convrec_r1.serve.session import Busy, Closed

        submitted = self._submitting.submit(session.submit, request)
        try:
            return await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_cancel)
            raise
        except UserError as error:
            raise ApiError(400, str(error), "invalid_request") from None
        except Busy:
            raise self._busy() from None
        except Closed:
            raise unavailable("The server is stopping.", "stopping", 5) from None


class Writing:
    """A list while it is written."""

    def __init__(self, reply: Reply, served: Served, metrics: Metrics) -> None:
        self.reply, self.served = reply, served
        self._metrics = metrics
        self._began = monotonic()
        metrics.tokens.labels("prompt").inc(reply.prompt_tokens)

    async def items(self) -> AsyncIterator[Recommendation]:
        """Yield the items as they are written.

        Raises:
            ApiError: the engine failed.
        """
        first = True
        try:
            async for found in self.reply:
                if first:
                    self._metrics.first_item.observe(monotonic() - self._began)
                    first = False
                self._metrics.items.inc()
                yield found
        except CancelledError:
            raise unavailable("The server is stopping.", "stopping", 5) from None
        except Exception as error:
            _log.error("A list failed: %s", error)
            raise ApiError(500, "The engine failed. The server's log says why.", "engine_failed", FAILED) from None

    def end(self) -> bool:
        """Cancel what is not written, and count what is. Return whether the list is complete."""
        if not self.reply.done():
            self.reply.cancel()
            self._metrics.cancelled.inc()
        self._metrics.tokens.labels("completion").inc(self.reply.completion_tokens)
        return self.reply.state == "done"


def _cancel(submitted: Future[Reply]) -> None:
    """Cancel a list whose client went away while it was submitted."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
