"""Answers over HTTP that end with the client: it goes away, or the time is over, and nothing is written any more."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from convrec_r1.serve.http.errors import FAILED, ApiError

T = TypeVar("T")


class Gone(Exception):
    """The client closed the connection."""


async def while_connected(http: Request, work: Awaitable[T], timeout: float) -> T:
    """Return the result of `work`, which is cancelled if the client goes away or the time is over.

    Raises:
        ApiError: 504, the time is over.
        Gone: the client went away.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({working, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone if leaving.done() else too_late(timeout)
    finally:
        leaving.cancel()
        if working.cancel():  # wait for it: it gives its place in the queue back
            await asyncio.gather(working, return_exceptions=True)


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def too_late(timeout: float) -> ApiError:
    return ApiError(504, f"The list was not complete within {timeout:g} s (serve.timeout).", "timeout", FAILED)


class Events(StreamingResponse):
    """Server-sent events. `until` is closed at the end, whoever ends first."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], until: AsyncExitStack) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._until:
            await super().__call__(scope, receive, send)


def event(value: Any, name: str | None = None) -> str:
    """Return a server-sent event with a value as JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


async def within(items: AsyncIterator[T], timeout: float) -> AsyncIterator[T]:
    """Yield items until the time is over. Raises ApiError (504) then."""
    end = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            async with asyncio.timeout_at(end):
                item = await anext(items)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise too_late(timeout) from None
        yield item
