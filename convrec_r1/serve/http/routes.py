"""The API's own paths: lists, the catalog's titles, thumbs, models, health and metrics."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from convrec_r1.data.schema import Message
from convrec_r1.serve.config import ServeConfig
from convrec_r1.serve.http import bodies, limits
from convrec_r1.serve.http.errors import ApiError, ErrorBody, unavailable
from convrec_r1.serve.http.feedback import Feedback, Full
from convrec_r1.serve.http.service import Served, Service, Writing
from convrec_r1.serve.http.streams import Events, event, while_connected, within
from convrec_r1.serve.request import LARGEST
from convrec_r1.serve.request import Request as ListRequest

WRONG: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in {
        400: "The request cannot be answered.",
        401: "The key is missing or wrong.",
        404: "No model of that name.",
        408: "The body arrived too slowly.",
        413: "The body is too large.",
        422: "The body is not of the right form.",
        429: "Too much is under way.",
        500: "The engine failed.",
        503: "The server starts, stops, or has failed.",
        504: "The list took too long.",
    }.items()
}
"""Errors that any path of /v1 may answer with."""
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]."}},
}
LIST: dict[int | str, dict[str, Any]] = {
    **WRONG,
    200: {
        "description": "The list; with `stream`, its events.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    },
}
"""Answers of the paths that write lists."""


def routes(service: Service) -> APIRouter:
    """Return the paths."""
    router = APIRouter()

    @router.post("/v1/recommendations", response_model=bodies.RecommendationsBody, responses=LIST, tags=["lists"])
    async def recommendations(asked: bodies.RecommendationsRequest, http: Request) -> Any:
        """Answer a conversation with a ranked list.

        With `stream`, each item is an event `item`, and the event `done` has the rest of the answer; an event `error` has what
        went wrong after the first.
        """
        limits.check(asked, service.cfg)
        limits.log(http, asked, service.cfg)
        served = service.model(asked.model)
        request = _request(asked, served, service.cfg)
        if asked.stream:
            writing, until = await begin(http, service, served, request)
            return Events(_events(writing, service.cfg.timeout), until)
        return await while_connected(http, _answer(service, served, request), service.cfg.timeout)

    @router.get("/v1/models", responses=WRONG, tags=["models"])
    async def models() -> bodies.ModelsBody:
        """The policies that are served, and what requests to them may hold."""
        service.model()
        return bodies.ModelsBody(data=[_described(served, service) for served in service.models.values()])

    @router.get("/v1/models/{name}", responses=WRONG, tags=["models"])
    async def model(name: str) -> bodies.ModelBody:
        """One of them."""
        return _described(service.model(name), service)

    @router.get("/v1/catalog", responses=WRONG, tags=["catalog"])
    async def catalog(
        query: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        model: str | None = None,
    ) -> bodies.CatalogBody:
        """Items of the catalog by the beginning of a word of their titles."""
        served = service.model(model)
        titles = await run_in_threadpool(lambda: served.titles)  # built by the first request
        items, more = titles.find(query, limit)
        return bodies.CatalogBody(
            items=[
                bodies.CatalogItem(title=item.title, year=item.year, metadata=_metadata(served.fields.get(item, {})))
                for item in items
            ],
            more=more,
        )

    @router.post("/v1/feedback", status_code=204, responses=WRONG, tags=["feedback"])
    async def feedback(thumb: bodies.Thumb) -> Response:
        """Keep a thumb on an item of a list."""
        limits.check(thumb, service.cfg)
        served = service.model(thumb.model)
        if service.feedback is None:
            raise ApiError(404, "This server keeps no thumbs (serve.feedback=FILE).", "no_feedback")
        await run_in_threadpool(_keep, service.feedback, served, thumb)
        return Response(status_code=204)

    @router.get(
        "/health", responses={503: {"model": bodies.HealthBody, "description": "It does not."}}, tags=["operation"]
    )
    async def health() -> bodies.HealthBody:
        """Whether the server answers."""
        body = bodies.HealthBody(status=service.status, models=list(service.models))
        if body.status == "ready":
            return body
        return JSONResponse(body.model_dump(), 503, {"Retry-After": "1"})  # pyright: ignore[reportReturnType]

    @router.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}, tags=["operation"]
    )
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


async def begin(
    http: Request, service: Service, served: Served, request: ListRequest
) -> tuple[Writing, AsyncExitStack]:
    """Ask for a list that is streamed. The stack ends it."""
    until = AsyncExitStack()
    entering = until.enter_async_context(service.writing(served, request))
    return await while_connected(http, entering, service.cfg.timeout), until


async def _answer(service: Service, served: Served, request: ListRequest) -> bodies.RecommendationsBody:
    async with service.writing(served, request) as writing:
        items = [bodies.RecommendationBody(**found.as_dict()) async for found in writing.items()]
        return bodies.RecommendationsBody(items=items, **rest(writing))


async def _events(writing: Writing, timeout: float) -> AsyncIterator[str]:
    try:
        async for found in within(writing.items(), timeout):
            yield event(found.as_dict(), "item")
        yield event({name: plain(value) for name, value in rest(writing).items()}, "done")
    except ApiError as error:
        yield event(error.body(), "error")


def rest(writing: Writing) -> dict[str, Any]:
    """Return the fields of an answer beside its items."""
    return {"model": writing.served.name, "remarks": writing.reply.notes, "usage": usage(writing)}


def usage(writing: Writing) -> bodies.Usage:
    read, written = writing.reply.prompt_tokens, writing.reply.completion_tokens
    return bodies.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def plain(value: Any) -> Any:
    """Return a model of pydantic as plain values, and others as they are."""
    return value.model_dump() if hasattr(value, "model_dump") else value


def common(asked: bodies.RecommendationsRequest | bodies.ChatRequest, cfg: ServeConfig) -> dict[str, Any]:
    """Return the options of a list that both ways to ask share, for `serve.request.Request`."""
    return {
        "seen": asked.seen,
        "where": asked.where,
        "exclude": [entry if isinstance(entry, str) else entry.item for entry in asked.exclude],
        "temperature": cfg.temperature if asked.temperature is None else asked.temperature,
        "top_p": cfg.top_p if asked.top_p is None else asked.top_p,
        "top_k": cfg.top_k,
        "seed": secrets.randbelow(LARGEST) if asked.seed is None else asked.seed,
    }


def _request(asked: bodies.RecommendationsRequest, served: Served, cfg: ServeConfig) -> ListRequest:
    return ListRequest(messages=_messages(asked.messages), n=asked.n or served.n, **common(asked, cfg))


def _messages(messages: str | list[bodies.Turn]) -> list[Message]:
    if isinstance(messages, str):
        return [Message("user", messages)]
    return [Message(turn.role, turn.content) for turn in messages]


def _described(served: Served, service: Service) -> bodies.ModelBody:
    fields = {name for values in served.fields.values() for name in values}
    return bodies.ModelBody(
        id=served.name,
        created=served.created,
        n=served.n,
        max_n=max(service.cfg.max_n, served.n),
        constraint=served.constraint,
        catalog=len(served.catalog or ()),
        fields=sorted(fields | {"title", "year"}) if served.catalog else [],
        feedback=service.feedback is not None,
    )


def _metadata(fields: Any) -> dict[str, list[str]]:
    return {name: list(values) for name, values in fields.items()}


def _keep(file: Feedback, served: Served, thumb: bodies.Thumb) -> None:
    """Keep a thumb. Raises ApiError for an item outside of the catalog, and for a full file."""
    item = thumb.item.item
    if served.catalog is not None:
        found = served.catalog.find(item)
        if found is None:
            raise ApiError(400, f"{item} is not in the catalog.", "not_in_catalog")
        item = found
    try:
        file.keep(
            _messages(thumb.messages),
            item,
            thumb.liked,
            seen=thumb.seen,
            model=served.name,
            conversation=thumb.conversation or "",
        )
    except Full:
        raise unavailable("The file of thumbs is full (serve.max_feedback).", "feedback_full", 60) from None
