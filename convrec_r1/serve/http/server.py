"""uvicorn in a thread: it listens before the model is loaded, and ends with what is under way."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from convrec_r1.base.errors import UserError
from convrec_r1.serve.http.config import LOOPBACK, HttpConfig
from convrec_r1.serve.http.service import Service

_KEPT_ALIVE = 15
"""Seconds without a request until a connection is closed."""
_HEADERS = 32_768
"""Bytes of a request's headers."""
_LAST = 2.0
"""Seconds for connections to close at the end."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Port 0: any that is free.

    Raises:
        UserError: the port is in use, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port={port}: another program listens on {host}:{port}. End it, or choose another port: port=0 takes any that "
                "is free."
            ) from None
        if isinstance(error, PermissionError):
            raise UserError(f"port={port}: this user may not listen there. Choose a port from 1024 on.") from None
        raise UserError(f"host={host}: this machine cannot listen there ({error.strerror or error}).") from None


def address(listener: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names(host: str, cfg: HttpConfig) -> list[str]:
    """Return the names by which requests may call the server. Empty: any.

    A page of another site could have its own name point to this machine, and read what the server answers. So a server that
    only this machine reaches answers to this machine's names only.
    """
    return cfg.hosts or (["127.0.0.1", "localhost", "[::1]"] if host in LOOPBACK else [])


class Listening:
    """A server in a thread of its own."""

    def __init__(self, app: ASGIApp, listener: socket.socket, service: Service) -> None:
        self._service = service
        config = uvicorn.Config(
            app,
            http=_protocol(service.cfg),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # the application logs what fails; broken requests are not worth a line each
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEPT_ALIVE,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_HEADERS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="convrec-r1 http", daemon=True
        )

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Refuse new requests, answer what is under way within `serve.drain`, and end."""
        self._service.stop()
        end = time.monotonic() + self._service.cfg.drain
        while self._service.under_way and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        if self._service.under_way:
            self._service.give_up()
        self._server.should_exit = True
        self._thread.join(_LAST + 1)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()


def _protocol(cfg: HttpConfig) -> type[Any]:
    """Return uvicorn's protocol, with time limits for clients that send or take nothing, and a limit of connections."""

    class Protocol(H11Protocol):
        _sending: asyncio.TimerHandle | None = None
        """Ends the connection if no whole request has arrived."""
        _taking: asyncio.TimerHandle | None = None
        """Ends the connection if the client has taken nothing."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            if len(self.connections) > cfg.connections:
                transport.abort()
            else:
                self._sending = self.loop.call_later(cfg.read_timeout, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            asked = self.cycle is not None and not self.cycle.response_complete
            if asked:  # its headers have arrived, and the application limits the rest
                self._sending = _stopped(self._sending)
            elif self._sending is None and not self.transport.is_closing():
                self._sending = self.loop.call_later(cfg.read_timeout, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._taking = self.loop.call_later(cfg.write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._taking = _stopped(self._taking)

        def connection_lost(self, exc: Exception | None) -> None:
            self._sending, self._taking = _stopped(self._sending), _stopped(self._taking)
            super().connection_lost(exc)

    return Protocol


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
