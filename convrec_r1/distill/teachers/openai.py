"""A teacher behind any endpoint that speaks OpenAI's chat API, through the official client."""

import asyncio
import email.utils
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import openai

from convrec_r1.base.errors import UserError
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers.base import Answer, Question, TeacherFault, TeacherRefusal
from convrec_r1.distill.teachers.cache import characters

OPENAI = "https://api.openai.com/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REFUSED = (400, 413, 422)
"""Statuses by which endpoints refuse one question: malformed or too long for the model."""
_AGAIN = (408, 409, 425, 429)
"""Statuses below 500 after which to ask again may help."""

# They tell of every request.
for _name in ("httpx", "httpx2", "openai"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class OpenAITeacher:
    """Asks `cfg.model` at `cfg.base_url`. The key is read from the environment when the first question is asked."""

    def __init__(self, cfg: TeacherConfig, *, base_url: str | None = None, identity: str | None = None) -> None:
        """base_url, identity: in place of the config's, for a server whose address says nothing of who it is."""
        self.cfg = cfg
        self.base_url = (base_url or cfg.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
        self.identity = identity or identity_of(cfg, endpoint=self.base_url)
        self._client: openai.AsyncOpenAI | None = None

    async def answer(self, question: Question) -> Answer:
        if self._client is None:
            self._client = self._connect()
        request: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": [message._asdict() for message in question.messages],
            "extra_body": {self.cfg.limit_field: question.max_tokens + self.cfg.extra_tokens, **self.cfg.extra},
        }
        if self.cfg.temperature is not None:
            request["temperature"] = self.cfg.temperature
        try:
            async with asyncio.timeout(self.cfg.timeout):  # the client's own limit is for each part of an answer
                completion = await self._client.chat.completions.create(**request)
        except (TimeoutError, openai.APITimeoutError):
            raise TeacherFault("time-out", f"no answer within {self.cfg.timeout:g} s (teacher.timeout)") from None
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise TeacherFault("broken connection", self._clean(f"{type(cause).__name__}: {cause}")) from None
        except (openai.APIError, ValueError) as error:  # of an answer that broke off or is something else
            raise TeacherFault("broken answer", self._clean(f"{type(error).__name__}: {error}")) from None
        return _read(completion, question)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connect(self) -> openai.AsyncOpenAI:
        host = urlsplit(self.base_url).hostname
        key = os.environ.get(self.cfg.api_key_env)
        if not key and host not in LOOPBACK:
            raise UserError(
                f"teacher={self.cfg.name} needs the key of {self.base_url} in the environment variable "
                f"{self.cfg.api_key_env} (teacher.api_key_env), which is not set."
            )
        # No proxy leads to this machine's own servers. Repeating is the interview's part, which counts and paces it.
        http = openai.DefaultAsyncHttpxClient(trust_env=host not in LOOPBACK, timeout=self.cfg.timeout)
        return openai.AsyncOpenAI(api_key=key or "none", base_url=self.base_url, max_retries=0, http_client=http)

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        status, said = error.status_code, self._clean(_message(error))
        where = f"{self.base_url} (status {status}): {said}"
        if status == 429 and "insufficient_quota" in (error.code, error.type):
            return UserError(
                f"The account is out of quota at {where}. What was answered is kept; add credit and go on."
            )
        if status >= 500 or status in _AGAIN:
            cause = "rate limit" if status == 429 else f"status {status}"
            return TeacherFault(cause, where, retry_after(error.response.headers))
        if status in _REFUSED:
            return TeacherRefusal(where)
        if status in (401, 403):
            return UserError(f"The key in {self.cfg.api_key_env} is refused by {where}")
        return UserError(
            f"teacher.model={self.cfg.model} cannot be asked at {where}. Check teacher.model and teacher.base_url."
        )

    def _clean(self, text: str) -> str:
        """Without the key, which some endpoints repeat when they refuse it."""
        key = os.environ.get(self.cfg.api_key_env)
        return (text.replace(key, "***") if key else text)[:500]


def identity_of(cfg: TeacherConfig, **who: str) -> str:
    """Who answers (`who`: where, or which weights) and how it is sampled, as JSON."""
    how = {"temperature": cfg.temperature, "extra": cfg.extra, "extra_tokens": cfg.extra_tokens}
    return json.dumps({"model": cfg.model, **who, **how}, sort_keys=True, default=str)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to leave the endpoint alone, from `retry-after-ms` or `Retry-After` (seconds or a date); None: not said."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        said = headers.get(name, "").strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?", said):
            return float(said) * unit
        try:
            return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
        except ValueError:
            continue
    return None


def _read(completion: Any, question: Question) -> Answer:
    """Raises TeacherFault unless it is an answer as the API has it: the client does not look."""
    if isinstance(completion, str):  # a page of another kind, such as a proxy's
        raise TeacherFault("broken answer", f"an answer that is no JSON came back: {completion[:100]!r}")
    try:
        choice = completion.choices[0]
        text, cut_off = choice.message.content, choice.finish_reason == "length"
    except (AttributeError, IndexError, TypeError):
        raise TeacherFault("empty answer", "an answer without choices came back") from None
    if not isinstance(text, str | None):
        raise TeacherFault("broken answer", f"an answer's content is of type {type(text).__name__}")
    text = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair cannot be kept
    usage = getattr(completion, "usage", None)
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    # Endpoints that do not count are counted for, at what English text has.
    read = read if isinstance(read, int) else characters(question) // 4
    written = written if isinstance(written, int) else len(text) // 4
    return Answer(text, read, written, cut_off)


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body)
    return error.message
