"""What every request passes: the key, limits of size and time, headers of answers, metrics."""

import asyncio
import hmac
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convrec_r1.serve.http.errors import INVALID, REFUSED, ApiError, unavailable

_PAGE = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_DOCS = f"{_PAGE}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
"""The documentation's page has a script and styles of its own inside."""
_OPEN = ("/health",)
"""Answered while the server stops."""


class Watch(Protocol):
    """What is told of each answer."""

    def answered(self, path: str, status: int, seconds: float) -> None: ...


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        max_body: int,
        read_timeout: float,
        watch: Watch,
        stopping: Callable[[], bool],
    ) -> None:
        """
        Args:
            key: that /v1 and /metrics ask for. None: none.
            max_body: bytes of a request's body.
            read_timeout: seconds until it has arrived.
            stopping: whether new requests are refused.
        """
        self.app, self.max_body, self.read_timeout = app, max_body, read_timeout
        self.key = None if key is None else key.encode()
        self.watch, self.stopping = watch, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        path: str = scope["path"]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), path)
            await send(message)

        try:
            self._admit(scope)
            body = await self._read(scope, receive)
        except ApiError as error:
            error.headers["Connection"] = "close"  # the rest of the body is not read
            await error.response()(scope, receive, answer)
        except _Gone:
            status = 499
        else:
            await self.app(scope, _again(body, receive), answer)
        finally:
            route = scope.get("route")
            known = getattr(route, "path", None) or "other"
            self.watch.answered(known, status or 499, time.monotonic() - began)

    def _admit(self, scope: Scope) -> None:
        """Raise an ApiError for a request that is refused before its body is read."""
        path: str = scope["path"]
        headers = Headers(scope=scope)
        if self.key is not None and (path.startswith("/v1/") or path == "/metrics") and scope["method"] != "OPTIONS":
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key):
                raise ApiError(
                    401,
                    "This server asks for a key: send it as `Authorization: Bearer KEY`.",
                    "invalid_api_key",
                    REFUSED,
                    {"WWW-Authenticate": "Bearer"},
                )
        if self.stopping() and path not in _OPEN:
            raise unavailable("The server is stopping. Ask again in a moment.", "stopping", 5)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body:
            raise self._too_large()

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body. Raises ApiError if it is too large or too slow."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    if size > self.max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"The body did not arrive within {self.read_timeout:g} s.", "request_timeout", INVALID
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body has more than {self.max_body:,} bytes (serve.max_body).", "body_too_large")


class _Gone(Exception):
    """The client closed the connection."""


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _add_headers(headers: MutableHeaders, path: str) -> None:
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Content-Security-Policy"] = _DOCS if path in ("/docs", "/redoc") else _PAGE
    headers["X-Request-ID"] = uuid.uuid4().hex
    if path.startswith("/v1/"):
        headers.setdefault("Cache-Control", "no-store")
