"""Bodies of the HTTP API: what a request may hold, and what an answer has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, WithJsonSchema

from convrec_r1.lists import Item

Text = Annotated[str, StringConstraints(min_length=1)]
Title = Annotated[str, StringConstraints(min_length=1, max_length=500)]
BRANCHES = ("text", "list", "object")


def _branch(value: Any) -> str:
    """Return which of two forms a value has, so that errors are about that one only."""
    return "list" if isinstance(value, list) else "object" if isinstance(value, (dict, BaseModel)) else "text"


class Body(BaseModel):
    """A request's body: unknown keys and values of another type are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Turn(Body):
    """A message of a conversation."""

    role: Literal["user", "assistant"]
    content: Text


Conversation = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[Turn], Field(min_length=1), Tag("list")], Discriminator(_branch)
]


class ItemName(Body):
    """An item by its title and year."""

    title: Title
    year: int | None = Field(None, ge=0, le=9999)

    @property
    def item(self) -> Item:
        return Item(self.title, self.year)


Excluded = Annotated[Annotated[Title, Tag("text")] | Annotated[ItemName, Tag("object")], Discriminator(_branch)]


class Asked(Body):
    """What a list may hold, and how it is sampled: the same for both ways to ask."""

    seen: list[Title] = Field([], description="Titles, or `Title (Year)`, that the user has seen.")
    where: Text | None = Field(None, description="Condition on the items.", examples=["genre=comedy and year>1990"])
    temperature: float | None = Field(
        None, ge=0, le=2, description="0: the most probable list. Left out: the server's own."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62, description="Of a list with a temperature. Left out: a new one.")


class RecommendationsRequest(Asked):
    """A list that is asked for."""

    messages: Conversation = Field(
        description="The user's only message, or the conversation so far.",
        examples=["I loved Alien. Something scary in space?"],
    )
    n: int | None = Field(
        None, ge=1, description="Recommendations. Left out: as many as the policy was trained to give."
    )
    exclude: list[Excluded] = Field([], description="Items that are left out, as `Title (Year)` or objects.")
    model: Text | None = Field(None, description="A name of /v1/models. Left out: the first.")
    stream: bool = Field(False, description="Send each item as a server-sent event as soon as it is written.")


class RecommendationBody(BaseModel):
    """One item of a list."""

    rank: int = Field(description="Place in the list, from 1.")
    title: str
    year: int | None
    score: float = Field(description="Log-probability of the line, given the conversation and the lines before.")
    in_catalog: bool
    metadata: dict[str, list[str]] = Field(description="Values of each field of the item.")


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RecommendationsBody(BaseModel):
    """A list."""

    model: str
    items: list[RecommendationBody]
    remarks: list[str] = Field(description="What was left out, and why the list is shorter than asked for.")
    usage: Usage


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatTurn(Body):
    """A message in OpenAI's form. Those of the system are left out: the policy has its own instruction."""

    role: Literal["user", "assistant", "system", "developer"]
    content: (
        Annotated[
            Annotated[Text, Tag("text")] | Annotated[list[TextPart], Field(min_length=1), Tag("list")],
            Discriminator(_branch),
        ]
        | None
    )
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


def _no(value: bool) -> bool:
    if value:
        raise ValueError("items have scores, and tokens none")
    return value


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(Body):
    type: Literal["text"]


class ChatRequest(Asked):
    """OpenAI's chat completion.

    `n_items`, `seen`, `exclude` and `where` are ours: the official client sends them in `extra_body`. What a list cannot have
    (tools, several choices, stop sequences, penalties, logprobs) is refused.
    """

    messages: Annotated[list[ChatTurn], Field(min_length=1)]
    model: str | None = Field(None, description="A name of /v1/models. Left out: the first.")
    n_items: int | None = Field(None, ge=1, description="Recommendations.")
    exclude: list[Excluded] = Field([], description="Items that are left out, as `Title (Year)` or objects.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="Limit of the answer's tokens.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same, by OpenAI's newer name.")
    n: int | None = Field(None, ge=1, le=1, description="Choices: 1.")
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    logprobs: Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    user: str | None = Field(None, description="Not read, as the next three.")
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


UNSUPPORTED = {
    *("n", "stop", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "response_format", "tools"),
    *("tool_choice", "functions", "function_call", "logit_bias", "modalities", "audio", "prediction"),
}
"""What OpenAI has and a list does not: refused with 400."""


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: Literal[0] = 0
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatBody(BaseModel):
    """OpenAI's chat completion, with the items of the list as objects beside its text."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    items: list[RecommendationBody]
    remarks: list[str]


class ModelBody(BaseModel):
    """A policy that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["convrec-r1"] = "convrec-r1"
    n: int = Field(description="Recommendations in a list where the request does not say.")
    max_n: int = Field(description="Recommendations that a request may ask for.")
    constraint: Literal["none", "catalog"]
    catalog: int = Field(description="Items in the catalog. 0: none is known.")
    fields: list[str] = Field(description="Names that `where` knows.")
    feedback: bool = Field(description="Whether thumbs are kept.")


class ModelsBody(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class CatalogItem(BaseModel):
    title: str
    year: int | None
    metadata: dict[str, list[str]]


class CatalogBody(BaseModel):
    """Items whose title has a word that begins with the query."""

    items: list[CatalogItem]
    more: bool = Field(description="Whether there are others.")


class Thumb(Body):
    """A thumb on an item of a list."""

    messages: Conversation = Field(
        description="The conversation that the list answered.", examples=["I loved Alien. Something scary in space?"]
    )
    item: ItemName
    liked: bool | None = Field(description="null takes a thumb back.")
    seen: list[Title] = []
    model: Text | None = None
    conversation: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="Tells equal conversations of several users apart."
    )


class HealthBody(BaseModel):
    status: Literal["ready", "loading", "stopping", "failed"]
    models: list[str]
