"""What the adapters share on the way from a row to a `Conversation`."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from convrec_r1.data.adapters.rows import Row, describe
from convrec_r1.data.schema import SPLITS, Conversation, Message, Split

Role = Literal["user", "assistant"]
_MESSAGES = "a list of {role, content}"


def read_messages(row: Row, key: str) -> tuple[Message, ...]:
    """A list of `{role, content}` as messages, at least one, contents verbatim. Roles are "user" and "assistant"."""
    values = row.array(key, _MESSAGES)
    if not values:
        raise row.error(f'"{key}" is empty; it must be {_MESSAGES} with one message at least.')
    return tuple(_message(row, f'"{key}", message {number}', value) for number, value in enumerate(values, start=1))


def _message(row: Row, place: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise row.error(f"{place} must be an object {{role, content}}, found {describe(value)}.")
    role, content = value.get("role"), value.get("content")
    if role not in ("user", "assistant"):
        raise row.error(f'{place}: "role" must be "user" or "assistant", found {describe(role)}.')
    if not isinstance(content, str) or not content.strip():
        raise row.error(f'{place}: "content" must be a string that is not blank, found {describe(content)}.')
    return Message(role, content)


def merge_turns(turns: Iterable[tuple[Role, str]]) -> tuple[Message, ...]:
    """Texts in the order they were sent as alternating messages: blank ones left out, neighbours of one role joined."""
    merged: list[Message] = []
    for role, text in turns:
        text = text.strip()
        if not text:
            continue
        if merged and merged[-1].role == role:
            merged[-1] = Message(role, f"{merged[-1].content}\n{text}")
        else:
            merged.append(Message(role, text))
    return tuple(merged)


def digest(text: str) -> str:
    """A short name for a text, the same in every process and on every machine."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def split_by_hash(key: str, missing: Sequence[Split] = ("validation", "test"), share: float = 0.1) -> Split:
    """The split of a cluster, from its name alone: each of `missing` gets `share` of all clusters, train the rest."""
    place = int(digest(key), 16) / 2**64
    for number, split in enumerate(missing, start=1):
        if place < number * share:
            return split
    return "train"


def find_catalog(path: Path, names: Iterable[str]) -> Path | None:
    """The first of the names in the data's folder, or else one level above it."""
    folder = path if path.is_dir() else path.parent
    places = [place / name for place in (folder, folder.resolve().parent) for name in names]
    return next((place for place in places if place.is_file()), None)


def by_split(conversations: Iterable[Conversation]) -> dict[str, list[Conversation]]:
    """All three splits, an absent one empty, in the order given."""
    splits: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    for conversation in conversations:
        splits[conversation.split].append(conversation)
    return splits


def check_id(row: Row, identifier: str, first: dict[str, str]) -> None:
    """UserError where an id occurred before; `first` remembers the place of each."""
    if identifier in first:
        raise row.error(
            f"the id {json.dumps(identifier[:60], ensure_ascii=False)} was used before ({first[identifier]}). Give each row "
            "its own."
        )
    first[identifier] = row.where


def split_files(folder: Path) -> Iterator[tuple[Split, Path]]:
    """The files {train,validation,test}.jsonl that are there."""
    for split in SPLITS:
        if (folder / f"{split}.jsonl").is_file():
            yield split, folder / f"{split}.jsonl"
