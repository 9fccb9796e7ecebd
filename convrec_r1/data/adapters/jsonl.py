"""Conversations in our own schema as JSON Lines: any domain, items with years or without.

One object a line:

    {"id": "c1", "cluster": "thread-7", "messages": [{"role": "user", "content": "..."}],
     "ground_truth": [["Title", 1999], {"title": "Title", "year": null}, "Title (1999)"],
     "seen": ["Title"], "demonstration": [["Title", 1999]], "split": "train", "has_instruction": false}

`id`, `messages` and `ground_truth` are required. Without `cluster`, a conversation is a cluster of its own.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convrec_r1.base.files import replacing
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import JSONL, by_split, check_id, present, read_messages, split_by_hash
from convrec_r1.data.adapters.rows import Row, read_jsonl
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Split
from convrec_r1.data.values import describe

_log = logging.getLogger(__name__)
_KEYS = {"id", "cluster", "messages", "ground_truth", "seen", "demonstration", "split", "has_instruction"}


class Jsonl(FileAdapter):
    """data=jsonl: conversations at `path` (see `read`), and a catalog file: `catalog`, or catalog.* beside or above `path`."""

    catalog_names = ("catalog.csv", "catalog.json", "catalog.jsonl", "catalog.pkl")

    def load(self) -> Dataset:
        """Raises UserError for what `read` refuses, and if there is no catalog."""
        conversations = read(self.path)
        return Dataset(self.load_catalog(), by_split(conversations))


def read(path: str | Path) -> list[Conversation]:
    """Return the conversations of a folder with {train,validation,test}.jsonl, or of one file.

    The split of a row in a single file is its `split`, else it follows from a hash of its cluster: 80 % train, 10 % validation,
    10 % test.

    Raises:
        UserError: a missing or empty file, a malformed row, an id used twice, or a `split` that contradicts the file's name.
    """
    path = Path(path)
    files: Mapping[Split | None, Path] = {**present(path, JSONL)} if path.is_dir() else {None: path}
    places: dict[str, str] = {}
    unread: set[str] = set()
    conversations = []
    for split, file in files.items():
        for row in read_jsonl(file):
            conversation = _conversation(row, split)
            check_id(row, conversation.id, places)
            conversations.append(conversation)
            unread |= row.fields.keys() - _KEYS
    if unread:
        _log.warning("%s: keys that are not read: %s", path, ", ".join(sorted(unread)))
    return conversations


def dump(conversations: Iterable[Conversation], path: str | Path) -> None:
    """Write conversations to a file that `read` reads back unchanged. The file is replaced only when it is complete."""
    with replacing(Path(path)) as scratch, scratch.open("wb") as file:
        for conversation in conversations:
            file.write(_encode(_row(conversation)) + b"\n")


def _conversation(row: Row, file_split: Split | None) -> Conversation:
    identifier = row.text("id")
    cluster = row.text("cluster", identifier)
    ground_truth = row.items("ground_truth")
    if not ground_truth:
        raise row.error('"ground_truth" is empty, so no list can be right. Leave the row out.')
    return Conversation(
        id=identifier,
        cluster=cluster,
        messages=read_messages(row, "messages"),
        ground_truth=ground_truth,
        seen=row.titles("seen"),
        demonstration=row.items("demonstration", None),
        split=_split(row, cluster, file_split),
        has_instruction=row.get("has_instruction", bool, "true or false", False),
    )


def _split(row: Row, cluster: str, file_split: Split | None) -> Split:
    split = row.fields.get("split")
    if split is None:
        return file_split or split_by_hash(cluster)
    if split not in SPLITS:
        raise row.error(f'"split" must be one of {", ".join(SPLITS)}, found {describe(split)}.')
    if file_split not in (None, split):
        raise row.error(f'"split" is {split}, but the file is the {file_split} split. Move the row or drop the key.')
    return split


def _row(conversation: Conversation) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": conversation.id,
        "cluster": conversation.cluster,
        "messages": [{"role": message.role, "content": message.content} for message in conversation.messages],
        "ground_truth": [list(item) for item in conversation.ground_truth],
        "seen": list(conversation.seen),
        "split": conversation.split,
    }
    if conversation.demonstration is not None:
        row["demonstration"] = [list(item) for item in conversation.demonstration]
    if conversation.has_instruction:
        row["has_instruction"] = True
    return row


def _encode(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate of scraped text: only its escaped form can be written
        return json.dumps(row).encode("ascii")
