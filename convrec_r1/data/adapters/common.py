"""Helpers of adapters: messages, ids, splits."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.schema import SPLITS, Conversation, Message, Split
from convrec_r1.data.values import describe

Role = Literal["user", "assistant"]
_MESSAGES = "a list of {role, content}"
JSONL: dict[Split, tuple[str, ...]] = {split: (f"{split}.jsonl",) for split in SPLITS}
"""Names of the files of datasets in one JSON Lines file a split."""


def read_messages(row: Row, key: str) -> tuple[Message, ...]:
    """Return a list of `{role, content}` as messages, at least one, contents unchanged. Roles: "user" and "assistant"."""
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
    """Return texts as messages. Blank texts are left out, and consecutive ones of one role are joined."""
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


def alternating(texts: Sequence[str]) -> tuple[Message, ...]:
    """Texts of two speakers in turn as messages. The last one is the user's, as a recommendation answers it."""
    last = len(texts) - 1
    return merge_turns(("assistant" if (last - number) % 2 else "user", text) for number, text in enumerate(texts))


def digest(text: str) -> str:
    """Return a short digest of a text, the same on every machine."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def split_by_hash(key: str, missing: Sequence[Split] = ("validation", "test"), share: float = 0.1) -> Split:
    """Return the split of a cluster by a hash of its name. Each of `missing` gets `share` of all clusters, train the rest."""
    place = int(digest(key), 16) / 2**64
    for number, split in enumerate(missing, start=1):
        if place < number * share:
            return split
    return "train"


def by_split(conversations: Iterable[Conversation]) -> dict[str, list[Conversation]]:
    """Return the conversations of all three splits, each in the order given."""
    splits: dict[str, list[Conversation]] = {split: [] for split in SPLITS}
    for conversation in conversations:
        splits[conversation.split].append(conversation)
    return splits


def check_id(row: Row, identifier: str, first: dict[str, str]) -> None:
    """Raise UserError for an id that was used before. first: id -> place of each id so far, updated here."""
    if identifier in first:
        raise row.error(
            f"the id {json.dumps(identifier[:60], ensure_ascii=False)} was used before ({first[identifier]}). Give each row "
            "its own."
        )
    first[identifier] = row.where


def present(folder: Path, names: Mapping[Split, Sequence[str]]) -> dict[Split, Path]:
    """Return the file of each split: the first of its names that is in the folder. Raises UserError if there is none."""
    found = {}
    for split in SPLITS:
        if file := next((folder / name for name in names[split] if (folder / name).is_file()), None):
            found[split] = file
    if not found:
        listed = ", ".join(name for split in SPLITS for name in names[split])
        raise UserError(f"{folder} holds none of {listed}. Check data.path.")
    return found
