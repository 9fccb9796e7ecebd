"""OpenAI's chat completions: a list as text."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from time import time
from typing import Any, Literal

from fastapi import APIRouter, Request

from convrec_r1.data.schema import Message
from convrec_r1.serve.config import ServeConfig
from convrec_r1.serve.http import bodies, limits
from convrec_r1.serve.http.errors import ApiError
from convrec_r1.serve.http.routes import LIST, begin, common, rest, usage
from convrec_r1.serve.http.service import Served, Service, Writing
from convrec_r1.serve.http.streams import Events, event, while_connected, within
from convrec_r1.serve.request import Recommendation
from convrec_r1.serve.request import Request as ListRequest


def completions(service: Service) -> APIRouter:
    """Return the path."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=bodies.ChatBody, responses=LIST, tags=["lists"])
    async def chat_completions(asked: bodies.ChatRequest, http: Request) -> Any:
        """Answer a conversation with a list as text, one `Title (Year)` a line, in the form of OpenAI's API.

        With `stream`, each line is a chunk, which has the item as an object too.
        """
        limits.check(asked, service.cfg)
        limits.log(http, asked, service.cfg)
        served = service.model(asked.model)
        request = _request(asked, served, service.cfg)
        if not asked.stream:
            return await while_connected(http, _answer(service, served, request), service.cfg.timeout)
        writing, until = await begin(http, service, served, request)
        counted = bool(asked.stream_options and asked.stream_options.include_usage)
        return Events(_chunks(writing, service.cfg.timeout, usage_too=counted), until)

    return router


def _request(asked: bodies.ChatRequest, served: Served, cfg: ServeConfig) -> ListRequest:
    messages = [Message(turn.role, turn.text) for turn in asked.messages if turn.role in ("user", "assistant")]
    if not any(message.content.strip() for message in messages):
        raise ApiError(422, "messages: there is no text of the user or the assistant.", "no_text")
    given = [limit for limit in (asked.max_tokens, asked.max_completion_tokens) if limit is not None]
    most = min(given, default=None)
    return ListRequest(messages=messages, n=asked.n_items or served.n, max_tokens=most, **common(asked, cfg))


async def _answer(service: Service, served: Served, request: ListRequest) -> bodies.ChatBody:
    async with service.writing(served, request) as writing:
        found = [one async for one in writing.items()]
        message = bodies.ChatMessage(content="\n".join(map(str, found)))
        return bodies.ChatBody(
            id=_identifier(),
            created=int(time()),
            choices=[bodies.ChatChoice(message=message, finish_reason=_finished(writing))],
            items=[bodies.RecommendationBody(**one.as_dict()) for one in found],
            **rest(writing),
        )


async def _chunks(writing: Writing, timeout: float, *, usage_too: bool) -> AsyncIterator[str]:
    """Yield a list as OpenAI's chunks: the role, each line, the reason for the end, and what was counted."""
    head = {
        "id": _identifier(),
        "object": "chat.completion.chunk",
        "created": int(time()),
        "model": writing.served.name,
    }

    def chunk(choices: Sequence[Any], **more: Any) -> str:
        return event({**head, "choices": choices, **({"usage": None} if usage_too else {}), **more})

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    try:
        yield chunk(choice({"role": "assistant", "content": ""}))
        async for found in within(writing.items(), timeout):
            yield chunk(choice({"content": _line(found)}), item=found.as_dict())
        yield chunk(choice({}, _finished(writing)), remarks=writing.reply.notes)
        if usage_too:
            yield chunk([], usage=usage(writing).model_dump())
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield event(error.body())


def _line(found: Recommendation) -> str:
    return str(found) if found.rank == 1 else f"\n{found}"


def _finished(writing: Writing) -> Literal["stop", "length"]:
    return writing.reply.finish_reason or "stop"


def _identifier() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
