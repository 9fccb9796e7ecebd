"""Conversations in our own schema: any domain, items with years or without.

JSON Lines, a JSON list, or Parquet. One object a line:

    {"id": "c1", "cluster": "thread-7", "messages": [{"role": "user", "content": "..."}],
     "ground_truth": [["Title", 1999], {"title": "Title", "year": null}, "Title (1999)"],
     "seen": ["Title"], "demonstration": [["Title", 1999]], "split": "train", "has_instruction": false}

`messages` and `ground_truth` are required. Without `id` a conversation is named by its file and line, without `cluster` it is a
cluster of its own. Messages are read as chat APIs and ShareGPT write them, see `read_messages`; seen titles are also read as
items.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.data.adapters.base import FileAdapter
from convrec_r1.data.adapters.common import (
    JSONL,
    SPLIT_NAMES,
    by_split,
    check_id,
    present,
    read_messages,
    split_by_hash,
)
from convrec_r1.data.adapters.rows import Row, read_rows
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Split
from convrec_r1.data.values import describe, listed

_log = logging.getLogger(__name__)
_MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
"""Names of the messages: ours, ShareGPT's, and others that people use."""
_KEYS = {*_MESSAGES, "id", "cluster", "ground_truth", "seen", "demonstration", "split", "has_instruction"}


class Jsonl(FileAdapter):
    """data=jsonl: conversations at `path` (see `read`), and a catalog file: `catalog`, or catalog.* beside or above `path`."""

    catalog_names = tuple(
        f"catalog{kind}" for kind in (".csv", ".json", ".jsonl", ".pkl", ".tsv", ".txt", ".parquet", ".csv.gz")
    )

    def load(self) -> Dataset:
        """Raises UserError for what `read` refuses, and if there is no catalog."""
        conversations = read(self.path)
        return Dataset(self.load_catalog(), by_split(conversations))

    def stream(self) -> tuple[Catalog, Iterator[Conversation]]:
        return self.load_catalog(), iterate(self.path)

    def sources(self) -> list[Path]:
        return self.with_catalog(present(self.path, JSONL).values() if self.path.is_dir() else [self.path])


def read(path: str | Path) -> list[Conversation]:
    """Return the conversations of `iterate`, with the same errors."""
    return list(iterate(path))


def iterate(path: str | Path) -> Iterator[Conversation]:
    """Yield the conversations of a folder with a file for each split (train.jsonl, validation.jsonl, ...), or of one file.

    The split of a row in a single file is its `split`, else it follows from a hash of its cluster: 80 % train, 10 % validation,
    10 % test. What is left out of messages, and rows without ground truth, are counted in one warning.

    Raises:
        UserError: a missing or empty file, malformed rows (the first ten are named, at the end), an id used twice, or a
            `split` that contradicts the file's name.
    """
    path = Path(path)
    files: Mapping[Split | None, Path] = {**present(path, JSONL)} if path.is_dir() else {None: path}
    places: dict[str, str] = {}
    notes, faults = Notes(), Faults()
    unread: set[str] = set()
    used = False
    for split, file in files.items():
        for row in read_rows(file, "a file of conversations", notes, faults):
            with faults:
                conversation = _conversation(row, split, notes)
                unread |= row.fields.keys() - _KEYS
                check_id(row, conversation.id, places)
                if conversation.ground_truth:
                    used = True
                    yield conversation
                else:
                    notes.add("rows without ground truth were left out, as no list can be right", row.where)
    faults.check()
    if unread:
        notes.add(f"keys are not read: {listed(sorted(unread))}", number=len(unread))
    notes.warn(_log, f"{path}:")
    if not used:
        raise UserError(f"{path} has no conversation that can be used ({notes}).")


def dump(conversations: Iterable[Conversation], path: str | Path) -> None:
    """Write conversations to a file that `read` reads back unchanged. The file is replaced only when it is complete."""
    with replacing(Path(path)) as scratch, scratch.open("wb") as file:
        for conversation in conversations:
            file.write(_encode(_row(conversation)) + b"\n")


def _conversation(row: Row, file_split: Split | None, notes: Notes) -> Conversation:
    identifier = row.text("id", row.where.replace(", line ", "-").replace(", item ", "-"))
    cluster = row.text("cluster", identifier)
    complete = row.get("has_instruction", bool, "true or false", False)
    return Conversation(
        id=identifier,
        cluster=cluster,
        messages=read_messages(row, next(filter(row.fields.get, _MESSAGES), "messages"), notes, complete=complete),
        ground_truth=row.items("ground_truth"),
        seen=row.seen("seen"),
        demonstration=row.items("demonstration", None),
        split=_split(row, cluster, file_split),
        has_instruction=complete,
    )


def _split(row: Row, cluster: str, file_split: Split | None) -> Split:
    split = row.fields.get("split")
    if split is None:
        return file_split or split_by_hash(cluster)
    named = SPLIT_NAMES.get(split) if isinstance(split, str) else None
    if named is None:
        raise row.error(f'"split" must be one of {", ".join(SPLITS)}, found {describe(split)}.')
    split = named
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
