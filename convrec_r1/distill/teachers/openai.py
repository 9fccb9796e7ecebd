"""A teacher behind an OpenAI-compatible chat API, through the official client, which retries and honours Retry-After."""

import json
import logging
import os
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import openai

from convrec_r1.base.errors import UserError
from convrec_r1.distill.config import ChatTeacherConfig, OpenAITeacherConfig
from convrec_r1.distill.teachers.base import Answer, BrokenAnswer, NoAnswer, Question, Refused, Structure
from convrec_r1.distill.teachers.cache import characters

OPENAI = "https://api.openai.com/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REFUSED = (400, 413, 422)
"""Statuses by which endpoints refuse one question: malformed, or too long for the model."""
_RETRIED = (408, 409, 425, 429)
"""Statuses below 500 that are not permanent."""
_log = logging.getLogger(__name__)
_CONNECTION = "timeout or broken connection"

for _name in ("httpx", "httpx2", "openai"):  # they log every request
    logging.getLogger(_name).setLevel(logging.WARNING)


class ChatClient:
    """Asks `cfg.model` at one endpoint. The key is read from the environment at the first question.

    Questions with a structure are asked for JSON of that schema. An endpoint that refuses `response_format` is asked for text
    from then on.
    """

    def __init__(self, cfg: ChatTeacherConfig, base_url: str, key_env: str = "") -> None:
        self.cfg, self.base_url, self.key_env = cfg, base_url.rstrip("/"), key_env
        self._client: openai.AsyncOpenAI | None = None
        self._structured = True

    async def answer(self, question: Question) -> Answer:
        if not self._structured or question.structure is None:
            return await self._ask(question, None)
        try:
            return await self._ask(question, question.structure)
        except Refused:
            answer = await self._ask(question, None)  # refused too: because of the question, not of the schema
        if self._structured:
            _log.info("%s refuses response_format=json_schema: it is asked for text from now on", self.base_url)
            self._structured = False
        return answer

    async def _ask(self, question: Question, structure: Structure | None) -> Answer:
        attempts = _Attempts()
        try:
            return _read(await self._create(question, attempts, structure), question, attempts)
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APITimeoutError:
            raise NoAnswer("timeout", f"no answer within {self.cfg.timeout:g} s (teacher.timeout)") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise NoAnswer("broken connection", self._clean(f"{type(cause).__name__}: {cause}")) from None
        except BrokenAnswer as broken:
            broken.retried = tuple(attempts.failed)
            raise
        except (openai.APIError, ValueError) as error:  # not the API's JSON
            broken = BrokenAnswer("broken answer", self._clean(f"{type(error).__name__}: {error}"))
            broken.retried = tuple(attempts.failed)
            raise broken from None

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _create(self, question: Question, attempts: "_Attempts", structure: Structure | None) -> Any:
        if self._client is None:
            self._client = self._connect()
        messages = [message._asdict() for message in question.messages]
        request: dict[str, Any] = {"model": self.cfg.model, "messages": messages}
        if structure is not None:
            messages[-1]["content"] += f"\n{structure.request}"
            schema = {"name": question.kind, "strict": True, "schema": dict(structure.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.cfg.temperature is not None:
            request["temperature"] = self.cfg.temperature
        limit = {self.cfg.limit_field: question.max_tokens + self.cfg.extra_tokens}
        token = _attempts.set(attempts)
        try:
            return await self._client.chat.completions.create(**request, extra_body={**limit, **self.cfg.extra})
        finally:
            _attempts.reset(token)

    def _connect(self) -> openai.AsyncOpenAI:
        host = urlsplit(self.base_url).hostname
        key = os.environ.get(self.key_env)
        if not key and host not in LOOPBACK:
            raise UserError(
                f"teacher={self.cfg.name} needs the key of {self.base_url} in the environment variable "
                f"{self.key_env} (teacher.api_key_env), which is not set."
            )
        # Requests to this machine never go through a proxy.
        http = openai.DefaultAsyncHttpxClient(
            trust_env=host not in LOOPBACK,
            timeout=self.cfg.timeout,
            event_hooks={"request": [_count_request], "response": [_note_response]},
        )
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.base_url, max_retries=self.cfg.retries, http_client=http
        )

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        status, where = error.status_code, self._where(error)
        if status == 429 and "insufficient_quota" in (error.code, error.type):
            return UserError(
                f"The account is out of quota at {where}. Answers so far are kept: add credit and run again."
            )
        if status >= 500 or status in _RETRIED:
            wait = error.response.headers.get("retry-after")
            return NoAnswer(_cause(status), where + (f" (Retry-After: {wait})" if wait else ""))
        if status in _REFUSED:
            return Refused(where)
        if status in (401, 403):
            return UserError(f"The key in {self.key_env} is refused by {where}")
        return UserError(
            f"teacher.model={self.cfg.model} cannot be asked at {where}. Check teacher.model and teacher.base_url."
        )

    def _where(self, error: openai.APIStatusError) -> str:
        said = error.body.get("message") or error.body if isinstance(error.body, dict) else error.message
        return f"{self.base_url} (status {error.status_code}): {self._clean(str(said))}"

    def _clean(self, text: str) -> str:
        """Remove the key, which some endpoints repeat when they refuse it."""
        key = os.environ.get(self.key_env)
        return (text.replace(key, "***") if key else text)[:500]


class OpenAITeacher(ChatClient):
    """teacher=openai"""

    def __init__(self, options: OpenAITeacherConfig) -> None:
        url = options.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        super().__init__(options, url, options.api_key_env)
        self.identity = identity_of(options, endpoint=self.base_url)


def identity_of(cfg: ChatTeacherConfig, **who: str) -> str:
    """Return as JSON what decides an answer: `who` (endpoint or weights), model and sampling options."""
    how = {"temperature": cfg.temperature, "extra": cfg.extra, "extra_tokens": cfg.extra_tokens}
    return json.dumps({"model": cfg.model, **who, **how}, sort_keys=True, default=str)


class _Attempts:
    """The requests of one question: the client retries by itself, and its hooks count here."""

    def __init__(self) -> None:
        self.last: str | None = None
        self.failed: list[str] = []


_attempts: ContextVar[_Attempts | None] = ContextVar("attempts", default=None)


async def _count_request(request: Any) -> None:
    attempts = _attempts.get()
    if attempts is not None:
        if attempts.last is not None:
            attempts.failed.append(attempts.last)
        attempts.last = _CONNECTION  # unless a response arrives


async def _note_response(response: Any) -> None:
    attempts = _attempts.get()
    if attempts is not None and response.status_code >= 400:
        attempts.last = _cause(response.status_code)
    if response.status_code == 429 and b"insufficient_quota" in await response.aread():
        response.headers["x-should-retry"] = "false"  # the client obeys: no retry brings money


def _cause(status: int) -> str:
    return "rate limit" if status == 429 else f"status {status}"


def _read(completion: Any, question: Question, attempts: _Attempts) -> Answer:
    """Check that it is an answer, which the client does not do. Raises BrokenAnswer or UserError."""
    if isinstance(completion, str):  # a page, such as a proxy's
        raise BrokenAnswer("broken answer", f"the reply is not JSON: {completion[:100]!r}")
    try:
        choice = completion.choices[0]
        text, cut_off = choice.message.content, choice.finish_reason == "length"
    except (AttributeError, IndexError, TypeError):
        raise BrokenAnswer("empty answer", "the reply has no choices") from None
    if not isinstance(text, str | None):
        raise BrokenAnswer("broken answer", f"an answer's content is of type {type(text).__name__}")
    if not text and cut_off:
        raise UserError(
            "The teacher used all tokens of an answer before it wrote any text: it thinks before it answers. Give "
            "teacher.extra_tokens=2000 or more."
        )
    text = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    usage = getattr(completion, "usage", None)
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    # Endpoints that do not count tokens: 4 characters a token, as in English text.
    read = read if isinstance(read, int) else characters(question) // 4
    written = written if isinstance(written, int) else len(text) // 4
    return Answer(text, read, written, tuple(attempts.failed))
