"""Helpers of adapters: messages, ids, splits."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.faults import Notes
from convrec_r1.data.schema import SPLITS, Conversation, Message, Split
from convrec_r1.data.values import describe

Role = Literal["user", "assistant"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "seeker", "customer", "usr"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "agent", "recommender"), "assistant"),
}
"""Names of the two speakers in chat APIs and datasets, in lower case."""
_INSTRUCTIONS = ("system", "developer")
_TOOLS = ("tool", "function", "tool_call", "tool_response", "function_call", "observation", "ipython", "environment")
_ROLE_KEYS, _CONTENT_KEYS = (
    ("role", "from", "speaker", "author", "sender"),
    ("content", "value", "text", "parts", "utterance"),
)
_TEXT_PARTS = ("text", "input_text", "output_text", None)
_MESSAGES = "a list of {role, content}"
_VALIDATION = ("validation", "valid", "val", "dev")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    **dict.fromkeys(_VALIDATION, "validation"),
}
"""Names of the splits in datasets."""
JSONL: dict[Split, tuple[str, ...]] = {
    split: tuple(
        name + kind for kind in (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
        for name, of in SPLIT_NAMES.items() if of == split
    )
    for split in SPLITS
}  # fmt: skip
"""Names of the files of datasets in one file a split."""


def read_messages(row: Row, key: str, notes: Notes | None = None, *, complete: bool = False) -> tuple[Message, ...]:
    """Return a list of `{role, content}`, in the form of chat APIs, as messages with unchanged contents.

    Roles go by several names (`ROLES`), also under the key "from" (ShareGPT, with "value"). A content is a string or a list of
    parts, of which the text is read. Left out and counted in `notes`: turns of tools, turns without text (null, blank, a call
    of a tool, an image), and turns of the system.

    Args:
        complete: the messages are a published prompt. Turns of the system stay: they are its instruction.
    Raises:
        UserError: no list, an unknown role, content of another type, or no message left.
    """
    notes = notes or Notes()
    values = row.array(key, _MESSAGES)
    if not values:
        raise row.error(f'"{key}" is empty; it must be {_MESSAGES} with one message at least.')
    messages = []
    for number, value in enumerate(values, start=1):
        if type(value) is dict and value.get("role") in ("user", "assistant"):  # nearly always
            role, content = value["role"], value.get("content")
        else:
            role, content = _speaker(row, f'"{key}", message {number}', value, complete)
        if type(content) is not str:
            content = _text(row, f'"{key}", message {number}', value, notes)
        if role == "system" and not complete:
            notes.add("turns of the system were left out", row.where)
        elif role is None:
            notes.add("turns of tools were left out", row.where)
        elif not content or content.isspace():
            notes.add("turns without text were left out", row.where)
        else:
            messages.append(Message(role, content))
    if not messages:
        raise row.error(f'"{key}" has no message of "user" or "assistant" with text.')
    return tuple(messages)


def _speaker(row: Row, place: str, value: Any, complete: bool) -> tuple[Any, Any]:
    """Return role and content of a message. The role is None for tools."""
    if not isinstance(value, dict):
        raise row.error(f"{place} must be an object {{role, content}}, found {describe(value)}.")
    role = next((value[name] for name in _ROLE_KEYS if name in value), None)
    role = role.get("role") if isinstance(role, dict) else role
    name = role.strip().lower() if isinstance(role, str) else ""
    content = next((value[name] for name in _CONTENT_KEYS if value.get(name) is not None), None)
    if name in _INSTRUCTIONS:
        return "system", content
    if name in _TOOLS:
        return None, ""
    if name not in ROLES:
        raise row.error(
            f'{place}: "role" must be "user" or "assistant" (or "system", "tool", which are left out), found {describe(role)}.'
        )
    return ROLES[name], content


def _text(row: Row, place: str, value: Any, notes: Notes) -> str:
    """Return the text of a message whose content is no string."""
    content = next((value[name] for name in _CONTENT_KEYS if value.get(name) is not None), None)
    if isinstance(content, dict):
        content = content.get("parts", [content])
    if content is None:
        return ""
    if not isinstance(content, list):
        raise row.error(f'{place}: "content" must be a string or a list of parts, found {describe(content)}.')
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else part
        if isinstance(text, str):
            texts.append(text)
        else:
            notes.add("parts of messages that are no text were left out", row.where)
    return "\n".join(text for text in texts if text.strip())


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
        listed = ", ".join(names[split][0] for split in SPLITS)
        raise UserError(f"{folder} holds none of {listed}. Check data.path.")
    return found
