"""Conversations in an Arrow file that is mapped into memory: a row is decoded when it is read.

| column | type | |
|---|---|---|
| row | binary | the conversation without its demonstration, as JSON: what its digest is made of |
| demonstration | binary | the list, as JSON; null: there is none |
| demonstrated | bool | whether the list has an item |
| id, cluster | binary | UTF-8 |
| truths | list of int32 | numbers of the ground truths in `TRUTHS` |

Training reads single rows at random, so what a row needs stands together in a column, and a read touches one or two pages. The
other columns answer questions about a whole split without a look at its rows.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import SPLITS, Conversation, Message
from convrec_r1.lists import Item

if TYPE_CHECKING:
    import pyarrow as pa

TRUTHS, CATALOG = "truths.arrow", "catalog.arrow"
"""Files of items: title, year and tags."""
_RELEASE = 64
"""Rows that are read until the pages mapped for them are given back. They stay in the system's cache."""
_BATCH = 1024
"""Rows that are written at once. All batches of a file but the last have as many."""


class Writer:
    """Writes the conversations of one split. A context manager: the file is complete when the block ends.

    truths: item -> number, shared by the splits and filled here.
    """

    def __init__(self, file: Path, truths: dict[Item, int]) -> None:
        import pyarrow as pa

        self._pa = pa
        self._truths = truths
        self._schema = pa.schema({
            "row": pa.binary(), "demonstration": pa.binary(), "demonstrated": pa.bool_(), "id": pa.binary(),
            "cluster": pa.binary(), "truths": pa.list_(pa.int32()),
        })  # fmt: skip
        self._file = file.open("wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._columns: list[list[Any]] = [[] for _ in self._schema]
        self._digest = blake2b(digest_size=16)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
            self._writer.close()
            _sync(self._file)
        finally:
            self._file.close()

    def add(self, conversation: Conversation) -> None:
        text = encode(conversation)
        self._digest.update(text + b"\n")
        shown = conversation.demonstration
        values = (
            text, None if shown is None else json.dumps(shown).encode(), bool(shown), _bytes(conversation.id),
            _bytes(conversation.cluster),
            [self._truths.setdefault(item, len(self._truths)) for item in conversation.ground_truth],
        )  # fmt: skip
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) == _BATCH:
            self._flush()

    @property
    def digest(self) -> str:
        """The same as `of_rows` of the conversations without their demonstrations."""
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if self._columns[0]:
            arrays = [
                self._pa.array(column, field.type) for column, field in zip(self._columns, self._schema, strict=True)
            ]
            self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))
            self._columns = [[] for _ in self._schema]


class Writers:
    """Writes the conversations of several splits, which may alternate. A context manager.

    Args:
        folder: of the files, {split}.arrow.
        truths: see `Writer`.
        elsewhere: split -> another folder for its file.
        only: the splits to write.
    """

    def __init__(
        self,
        folder: Path,
        truths: dict[Item, int],
        *,
        elsewhere: Mapping[str, Path] | None = None,
        only: Sequence[str] = SPLITS,
    ) -> None:
        places = {split: (elsewhere or {}).get(split, folder) for split in only}
        self._stack = ExitStack()
        self._writers = {split: Writer(_file(place, split), truths) for split, place in places.items()}

    def __enter__(self) -> Writers:
        for writer in self._writers.values():
            self._stack.enter_context(writer)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, conversation: Conversation) -> None:
        self._writers[conversation.split].add(conversation)

    @property
    def digests(self) -> dict[str, str]:
        """Split -> `Writer.digest`."""
        return {split: writer.digest for split, writer in self._writers.items()}


class Rows(Sequence[Conversation]):
    """The conversations of a file of `Writer`, or some of them.

    split: the split that all of them belong to.
    """

    def __init__(self, file: Path, split: str, truths: Sequence[Item] = ()) -> None:
        self.split = split
        self._file = file
        self._items = truths
        self._map, self._batches = _mapped(file)
        self._read = 0
        self._length = sum(batch.num_rows for batch in self._batches)
        self._places: np.ndarray | None = None
        """Numbers of the rows of this sequence in the file. None: all rows."""
        self._change: Callable[[Conversation], Conversation] | None = None
        self.lists: Mapping[str, tuple[Item, ...]] | None = None
        """Id -> demonstration in place of the file's. None: the file's."""

    def chosen(self, places: np.ndarray) -> Rows:
        """Return the rows at these places, in this order."""
        return self._with(_places=np.asarray(places) if self._places is None else self._places[places])

    def changed(self, change: Callable[[Conversation], Conversation]) -> Rows:
        """Return the same rows, each changed when it is read. Columns stay as they are."""
        before = self._change
        return self._with(_change=change if before is None else lambda c: change(before(c)))

    def with_lists(self, lists: Mapping[str, tuple[Item, ...]]) -> Rows:
        """Return the same rows with other demonstrations, by id. A row without one there has none."""
        return self.changed(lambda c: replace(c, demonstration=lists.get(c.id)))._with(lists=lists)

    @property
    def whole(self) -> bool:
        """Whether these are all rows of the file."""
        return self._places is None

    def __len__(self) -> int:
        return self._length if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Conversation | Rows:
        if isinstance(index, slice):
            return self.chosen(np.arange(len(self))[index])
        place = range(len(self))[index]  # IndexError as for any sequence
        self._read += 1
        if self._read % _RELEASE == 0:  # a row maps half a megabyte around it: an epoch, the whole file
            _release(self._map)
        batch, at = divmod(place if self._places is None else int(self._places[place]), _BATCH)
        found = decode(*(self._batches[batch].column(column)[at].as_py() for column in (0, 1)))
        return found if self._change is None else self._change(found)

    def __iter__(self) -> Iterator[Conversation]:
        return map(self.__getitem__, range(len(self)))

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of these rows."""
        import pyarrow as pa

        kind = {"demonstrated": pa.bool_(), "truths": pa.list_(pa.int32())}.get(name, pa.binary())
        whole = pa.chunked_array([batch.column(name) for batch in self._batches], kind)
        return whole if self._places is None else whole.take(pa.array(self._places))

    @property
    def demonstrated(self) -> np.ndarray:
        """Whether each row has a demonstration with an item, [rows] of bool."""
        if self.lists is not None:
            return np.array([bool(self.lists.get(name)) for name in self.ids], dtype=bool)
        return self.column("demonstrated").to_numpy()

    @property
    def clusters(self) -> list[str]:
        """The cluster of each row."""
        return [_text(value) for value in self.column("cluster").to_pylist()]

    def truths(self) -> tuple[Sequence[Item], np.ndarray, np.ndarray]:
        """Return the ground truths of all rows.

        Returns:
            The items of all splits, the number of ground truths of each row, and the numbers of their items, row after row.
        """
        column = self.column("truths").combine_chunks()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        return self._items, lengths, column.flatten().to_numpy(zero_copy_only=False)

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [_text(value) for value in self.column("id").to_pylist()]

    def _with(self, **values: Any) -> Rows:
        made = object.__new__(Rows)
        vars(made).update(vars(self) | values)
        return made


def rows_of(folder: Path, split: str, truths: Sequence[Item] = ()) -> Rows:
    """Return the rows that `Writers` wrote into a folder."""
    return Rows(_file(folder, split), split, truths)


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}.arrow"


def demonstration_lines(conversations: Sequence[Conversation]) -> Iterator[bytes]:
    """Yield [id, demonstration] of each conversation as JSON: the lines of the digest of demonstrations."""
    if not isinstance(conversations, Rows):
        yield from (json.dumps((c.id, c.demonstration)).encode() for c in conversations)
    elif (lists := conversations.lists) is not None:
        yield from (json.dumps((name, lists.get(name))).encode() for name in conversations.ids)
    else:
        for name, column in zip(conversations.ids, conversations.column("demonstration"), strict=True):
            text = column.as_py()
            yield b"[%b, %b]" % (json.dumps(name).encode(), b"null" if text is None else text)


def encode(conversation: Conversation) -> bytes:
    """Return a conversation without its demonstration as JSON, in ASCII: the line of it in the digest of its split."""
    c = conversation
    messages = [[message.role, message.content] for message in c.messages]
    return json.dumps(
        [c.id, c.cluster, messages, c.ground_truth, c.seen, c.split, c.has_instruction]
    ).encode("ascii")  # fmt: skip


def decode(row: bytes, demonstration: bytes | None) -> Conversation:
    """Return the conversation that `encode` wrote, with its demonstration."""
    name, cluster, messages, truths, seen, split, published = json.loads(row)
    return Conversation(
        name,
        cluster,
        tuple([Message(role, content) for role, content in messages]),
        tuple([Item(title, year) for title, year in truths]),
        tuple(seen),
        None if demonstration is None else tuple([Item(title, year) for title, year in json.loads(demonstration)]),
        split,
        published,
    )


def write_items(items: Iterable[Item], file: Path, tags: Mapping[Item, Iterable[str]] | None = None) -> None:
    """Write items, and the tags that some of them have."""
    import pyarrow as pa

    items, known = list(items), tags or {}
    columns = {
        "title": pa.array([_bytes(item.title) for item in items], pa.binary()),
        "year": pa.array([item.year for item in items], pa.int64()),
        "tags": pa.array(
            [sorted(map(_bytes, known[item])) if item in known else None for item in items], pa.list_(pa.binary())
        ),
    }
    table = pa.table(columns)
    with file.open("wb") as opened, pa.ipc.new_file(opened, table.schema) as writer:
        writer.write_table(table)
        writer.close()
        _sync(opened)


def read_items(file: Path) -> tuple[list[Item], dict[Item, list[str]]]:
    """Return the items that `write_items` wrote, and the tags of those that have any."""
    items: list[Item] = []
    tags: dict[Item, list[str]] = {}
    for batch in _mapped(file)[1]:
        titles, years, labels = (batch.column(at) for at in range(3))
        found = [Item(_text(title), year) for title, year in zip(titles.to_pylist(), years.to_pylist(), strict=True)]
        items += found
        if labels.null_count < len(labels):
            tags |= {
                item: [_text(tag) for tag in known]
                for item, known in zip(found, labels.to_pylist(), strict=True)
                if known is not None
            }
    return items, tags


def read_catalog(file: Path) -> Catalog:
    """Return the catalog that `write_items` wrote with its metadata."""
    return Catalog(*read_items(file))


def _mapped(file: Path) -> tuple[mmap.mmap, list[pa.RecordBatch]]:
    """Map a file into memory. Return the map and its batches, which are views of it."""
    import pyarrow as pa

    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
    return mapped, [reader.get_batch(at) for at in range(reader.num_record_batches)]


def _release(mapped: mmap.mmap) -> None:
    """Give the mapped pages back to the system. They are read again from its cache, or from the file, when they are needed."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # scraped text has lone surrogates


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


def _sync(file: Any) -> None:
    """Write a file to the disk: its name must not be there before its contents are."""
    file.flush()
    os.fsync(file.fileno())
