"""A teacher behind an OpenAI-compatible chat API, through the official client."""

import json
import logging
import os
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

from convrec_r1.base.errors import UserError
from convrec_r1.distill.config import ChatTeacherConfig, OpenAITeacherConfig
from convrec_r1.distill.teachers.base import THINKS, Answer, NoAnswer, Question, Refused, Structure, Unusable
from convrec_r1.distill.teachers.cache import characters
from convrec_r1.lists import strip_thoughts

OPENAI = "https://api.openai.com/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REFUSED = (400, 413, 422, 451)
"""Statuses by which endpoints refuse one question: malformed, too long for the model, not allowed."""
_MODERATED = re.compile(r"moderat|flagged|content.?(?:policy|filter)|safety", re.IGNORECASE)
"""Words in a 403 that refuses one question. Any other 403 refuses the key."""
_RETRIED = (408, 409, 425, 429)
"""Statuses below 500 that are not permanent."""
_log = logging.getLogger(__name__)

for _name in ("httpx", "httpx2", "openai"):  # they log every request
    logging.getLogger(_name).setLevel(logging.WARNING)


class ChatClient:
    """Asks `cfg.model` at one endpoint. The key is read from the environment at the first question.

    Questions with a structure are asked for JSON of that schema. An endpoint that refuses `response_format` is asked for text
    from then on.
    """

    def __init__(
        self, cfg: ChatTeacherConfig, base_url: str, key_env: str = "", *, template: dict | None = None
    ) -> None:
        """template: arguments of the chat template. None: those of `cfg`."""
        self.cfg, self.base_url, self.key_env = cfg, base_url.rstrip("/"), key_env
        self.template = cfg.template if template is None else template
        self._client: openai.AsyncOpenAI | None = None
        self._structured = True
        self._thoughts_reported = False

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

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _ask(self, question: Question, structure: Structure | None) -> Answer:
        self._client = self._client or self._connect()
        try:
            completion = await self._client.chat.completions.create(**self._request(question, structure))
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except openai.APIConnectionError as error:  # timeouts too
            cause = error.__cause__ or error
            said = f"no answer within {self.cfg.timeout:g} s (teacher.timeout)"
            said = said if isinstance(error, openai.APITimeoutError) else f"{type(cause).__name__}: {cause}"
            raise NoAnswer("timeout or broken connection", self._clean(said)) from None
        except (openai.APIError, ValueError) as error:  # not the API's JSON
            raise NoAnswer("broken answer", self._clean(f"{type(error).__name__}: {error}")) from None
        answer = _read(completion, question)
        if _thoughts_apart(completion) and not self._thoughts_reported:
            self._thoughts_reported = True
            _log.info(
                "%s sends its thoughts apart (reasoning_content): they are paid for, and otherwise ignored",
                self.base_url,
            )
        return answer

    def _request(self, question: Question, structure: Structure | None) -> dict[str, Any]:
        messages = [message._asdict() for message in question.messages]
        limit = {self.cfg.limit_field: question.max_tokens + self.cfg.extra_tokens}
        template = {"chat_template_kwargs": dict(self.template)} if self.template else {}
        extra = {**limit, **template, **self.cfg.extra}
        request = {"model": self.cfg.model, "messages": messages, "extra_body": extra}
        if structure is not None:
            messages[-1]["content"] += f"\n{structure.request}"
            schema = {"name": question.kind, "strict": True, "schema": dict(structure.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.cfg.temperature is not None:
            request["temperature"] = self.cfg.temperature
        return request

    def _connect(self) -> openai.AsyncOpenAI:
        remote = urlsplit(self.base_url).hostname not in LOOPBACK
        key = os.environ.get(self.key_env)
        if not key and remote:
            raise UserError(
                f"teacher={self.cfg.name} needs the key of {self.base_url} in the environment variable "
                f"{self.key_env} (teacher.api_key_env), which is not set."
            )
        # Requests to this machine never go through a proxy. The interview retries.
        http = openai.DefaultAsyncHttpxClient(trust_env=remote, timeout=self.cfg.timeout)
        return openai.AsyncOpenAI(api_key=key or "none", base_url=self.base_url, max_retries=0, http_client=http)

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        said = error.body.get("message") or error.body if isinstance(error.body, dict) else error.message
        where = f"{self.base_url} (status {status}): {self._clean(str(said))}"
        if status == 402 or (status == 429 and "insufficient_quota" in (error.code, error.type)):
            return UserError(
                f"The account is out of quota at {where}. Answers so far are kept: add credit and run again."
            )
        if status >= 500 or status in _RETRIED:
            cause = "rate limit" if status == 429 else f"status {status}"
            return NoAnswer(cause, where, seconds_of(error.response.headers.get("retry-after", "")))
        if status in _REFUSED or (status == 403 and _MODERATED.search(where)):
            return Refused(where)
        if status in (401, 403):
            return UserError(f"The key in {self.key_env} is refused by {where}")
        return UserError(
            f"teacher.model={self.cfg.model} cannot be asked at {where}. Check teacher.model and teacher.base_url."
        )

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
    how |= {"template": cfg.template} if cfg.template else {}
    return json.dumps({"model": cfg.model, **who, **how}, sort_keys=True, default=str)


def seconds_of(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3). None: neither."""
    if retry_after.strip().replace(".", "", 1).isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read(completion: Any, question: Question) -> Answer:
    """Check that it is an answer, which the client does not do. Raises NoAnswer or UserError."""
    if isinstance(completion, str):  # a page, such as a proxy's
        raise NoAnswer("broken answer", f"the reply is not JSON: {completion[:100]!r}")
    try:
        choice = completion.choices[0]
        text, cut_off = choice.message.content, choice.finish_reason == "length"
    except (AttributeError, IndexError, TypeError):
        raise NoAnswer("empty answer", "the reply has no choices") from None
    if not isinstance(text, str | None):
        raise NoAnswer("broken answer", f"an answer's content is of type {type(text).__name__}")
    text = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    usage = getattr(completion, "usage", None)
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    # Endpoints that do not count tokens: 4 characters a token, as in English text.
    read = read if isinstance(read, int) else characters(question) // 4
    written = written if isinstance(written, int) else len(text) // 4
    if refusal := getattr(choice.message, "refusal", None):
        raise Unusable(f"the teacher declines: {str(refusal)[:200]!r}", read, written)
    if choice.finish_reason == "content_filter" and not text.strip():
        raise Unusable("the endpoint's content filter withholds the answer", read, written)
    if cut_off and not strip_thoughts(text).strip():
        raise Unusable(f"an answer used all its tokens before it said anything. {THINKS}", read, written)
    return Answer(text, read, written)


def _thoughts_apart(completion: Any) -> bool:
    message = completion.choices[0].message
    return bool(getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None))
