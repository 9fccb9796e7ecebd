"""The HTTP application: paths, errors, limits, and the page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

from convrec_r1 import __version__
from convrec_r1.serve.http.bodies import BRANCHES, UNSUPPORTED
from convrec_r1.serve.http.completions import completions
from convrec_r1.serve.http.errors import FAILED, ApiError
from convrec_r1.serve.http.guard import Guard
from convrec_r1.serve.http.routes import routes
from convrec_r1.serve.http.service import Service
from convrec_r1.serve.http.streams import Gone

_log = logging.getLogger(__name__)
PAGE = Path(__file__).parents[1] / "static"
_SHOWN = 5
"""Faults of a body that a message names."""


def make_app(service: Service, *, key: str | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """Return the application.

    Args:
        key: that requests must bring. None: none.
        hosts: names by which requests may call it. Empty: any.
    """
    cfg = service.cfg
    app = FastAPIOffline(
        title="ConvRec-R1",
        version=__version__,
        description="Ranked lists from a trained policy, and OpenAI's chat completions over the same.",
        redoc_url=None,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    # The guard asks for the key. Here it is documented, so that /docs can send it.
    documented = [Depends(HTTPBearer(auto_error=False, description="CONVREC_R1_API_KEY of the server"))] if key else []
    app.include_router(routes(service), dependencies=documented)
    app.include_router(completions(service), dependencies=documented)
    _handle_errors(app)
    if PAGE.is_dir():
        app.router.routes.append(_Page(app.router.routes))
    if cfg.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cfg.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(
        Guard,
        key=key,
        max_body=cfg.max_body,
        read_timeout=cfg.read_timeout,
        watch=service.metrics,
        stopping=lambda: service.stopping,
    )
    return app


class _Page(Mount):
    """The page's files, at paths that no other route has. Those are answered with 405 where the method is another."""

    def __init__(self, others: Sequence[BaseRoute]) -> None:
        super().__init__("/", StaticFiles(directory=PAGE, html=True), name="page")
        self._others = list(others)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if any(other.matches(scope)[0] is not Match.NONE for other in self._others):
            return Match.NONE, {}
        return super().matches(scope)


def _handle_errors(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(http: Request, error: RequestValidationError) -> Response:
        return _malformed(http, error.errors()).response()

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, f"{error.detail}.", "http_error", headers=error.headers).response()

    @app.exception_handler(Gone)
    async def gone(_: Request, __: Gone) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        _log.error("A request failed", exc_info=error)
        return ApiError(500, "The server failed. Its log says why.", "internal_error", FAILED).response()


def _malformed(http: Request, errors: Sequence[Any]) -> ApiError:
    """Return what is wrong with a body, without what it holds."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(
            422, f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}.", "not_json"
        )
    if first["loc"] == ("body",) and "json" not in http.headers.get("content-type", ""):
        return ApiError(422, "Send a body of JSON with the header Content-Type: application/json.", "not_json")
    words, unsupported = [], False
    for error in errors[:_SHOWN]:
        place = [str(part)[:60] for part in error["loc"] if part not in ("body", *BRANCHES)]
        words.append(f"{'.'.join(place) or 'the body'}: {error['msg'].rstrip('.')}.")
        unsupported |= http.url.path.endswith("/completions") and not UNSUPPORTED.isdisjoint(place[:1])
    more = [f"And {len(errors) - _SHOWN} more."] if len(errors) > _SHOWN else []
    if unsupported:
        return ApiError(
            400, " ".join(["A list cannot be asked for like this.", *words, *more]), "unsupported_parameter"
        )
    return ApiError(422, " ".join(words + more), "invalid_body")
