"""Errors of the HTTP API, in OpenAI's form."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

INVALID, LIMITED, FAILED, REFUSED = "invalid_request_error", "rate_limit_error", "server_error", "authentication_error"


class ApiError(Exception):
    """A request that is not answered as asked."""

    def __init__(
        self, status: int, message: str, code: str, kind: str = INVALID, headers: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            status: of HTTP.
            message: what is wrong and what to do.
            code: the same for programs.
            kind: OpenAI's `type`.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.kind, self.headers = status, message, code, kind, dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    """What is wrong."""

    error: ErrorDetail


def unavailable(message: str, code: str, seconds: int = 1) -> ApiError:
    """Return a 503: the server cannot answer now, and may be asked again after some seconds."""
    return ApiError(503, message, code, FAILED, {"Retry-After": str(seconds)})
