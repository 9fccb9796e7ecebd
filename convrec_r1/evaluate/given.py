"""Read lists that any system wrote, and assign them to the conversations of a split (task=score).

Forms: a JSON Lines file, a row a conversation; a JSON file, an object {id: list} or a list of such rows; a CSV or TSV file with
a row a conversation, or a row an item, best first; a folder with one text file a conversation, named by its id. A run's
eval/<split>.jsonl is such a file too.
"""

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.rows import Row, read_jsonl
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.files import parse_json, read_lines
from convrec_r1.data.items import to_item
from convrec_r1.data.schema import Conversation
from convrec_r1.data.values import describe
from convrec_r1.evaluate.config import Missing

_log = logging.getLogger(__name__)

IDS = ("id", "conversation", "conversation_id")
"""Keys of a conversation's id. The first of them in a row is read."""
LISTS = ("items", "list", "recommendations", "text", "completion", "response", "output")
"""Keys of a list, as items or as text. The first of them in a row is read."""
_TEXT_FILES = (".txt", ".md", ".text")
"""Extensions of text files, which are not part of an id."""
_SHOWN = 3
"""Ids in a message."""
Entry = tuple[str, str, str]
"""Id of a conversation, its list as text, and the place of both."""


@dataclass(frozen=True)
class Given:
    """The lists of one file or folder."""

    texts: dict[str, str]
    """Conversation id -> the list as text, one item a line. Of several lists of one conversation, the first."""
    repeated: dict[str, str] = field(default_factory=dict)
    """Conversation id -> place of another list, different from its first."""


@dataclass(frozen=True)
class Assigned:
    """The conversations that count, each with its list."""

    conversations: list[Conversation]
    texts: list[str]
    """The list of each conversation."""
    counts: dict[str, int]
    """given, missing, unknown, repeated, empty: numbers of lists."""
    notes: list[str]
    """A sentence for each kind of problem."""


def read(path: Path) -> Given:
    """Read lists in one of the forms above.

    Raises:
        UserError: no such file, a form that is not known, or malformed rows: the first ten, with file and line.
    """
    texts: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for name, text, where in _entries(path):
        if texts.setdefault(name, text) != text:
            repeated.setdefault(name, where)
    if not texts:
        kind = "no file (it needs one text file a conversation, named by its id)" if path.is_dir() else "no lists"
        raise UserError(f"{path} holds {kind}.")
    return Given(texts, repeated)


def assign(given: Given, conversations: Sequence[Conversation], missing: Missing, where: str) -> Assigned:
    """Assign lists to conversations. A conversation without a list has an empty one, or is left out.

    where: the lists and the split, for messages.

    Raises:
        UserError: no list belongs to any of the conversations.
    """
    known = {conversation.id for conversation in conversations}
    foreign = [name for name in given.texts if name not in known]
    absent = [conversation.id for conversation in conversations if conversation.id not in given.texts]
    if len(absent) == len(conversations):
        raise UserError(
            f"{where}: none of the ids belongs to a conversation there. Ids of the lists: {_some(foreign)}; of the "
            f"conversations: {_some(absent)}. Check data.*, eval.split, and the ids of the lists."
        )
    leave_out = missing is Missing.leave_out
    kept = [c for c in conversations if c.id in given.texts] if leave_out else list(conversations)
    repeated = [name for name in given.repeated if name in known]
    notes = []
    if absent:
        what = (
            "left out: scores are over the others only (score.missing=leave_out)"
            if leave_out
            else "counted as empty lists (score.missing=leave_out leaves them out)"
        )
        notes.append(f"Conversations without a list: {len(absent)} of {len(conversations)} ({_some(absent)}), {what}.")
    if foreign:
        notes.append(f"Lists whose id is of no conversation of the split, left out: {len(foreign)} ({_some(foreign)}).")
    if repeated:
        places = "; ".join(given.repeated[name] for name in repeated[:_SHOWN])
        notes.append(
            f"Conversations with several lists, of which the first counts: {len(repeated)} (others: {places})."
        )
    if empty := [c.id for c in conversations if not given.texts.get(c.id, "?").strip()]:
        notes.append(f"Empty lists: {len(empty)} ({_some(empty)}).")
    counts = {"given": len(given.texts), "missing": len(absent), "unknown": len(foreign), "repeated": len(repeated)}
    counts["empty"] = len(empty)
    return Assigned(kept, [given.texts.get(c.id, "") for c in kept], counts, notes)


def _entries(path: Path) -> Iterator[Entry]:
    if path.is_dir():
        return _texts(path)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(path)
        case ".json":
            return _json(path)
        case ".csv":
            return _table(path, ",")
        case ".tsv":
            return _table(path, "\t")
        case _ if not path.exists():
            raise UserError(f"lists={path}: no such file or folder (from {Path.cwd()}).")
        case suffix:
            raise UserError(
                f"lists={path}: give a .jsonl, .json, .csv or .tsv file, or a folder with one text file a conversation; "
                f"found {suffix or 'no extension'}."
            )


def _texts(folder: Path) -> Iterator[Entry]:
    if (folder / "config.yaml").exists():
        raise UserError(
            f"lists={folder} is the folder of a run: compare it as it is (task=compare), or name a file of it."
        )
    for file in sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")):
        yield file.stem if file.suffix in _TEXT_FILES else file.name, _contents(file), str(file)


def _json_lines(path: Path) -> Iterator[Entry]:
    notes, faults = Notes(), Faults()
    yield from _rows(read_jsonl(path, notes, faults), faults)
    notes.warn(_log, f"{path.name}:")


def _rows(rows: Iterable[Row], faults: Faults) -> Iterator[Entry]:
    """Yield the lists of rows. Raises UserError at the end, with the first ten faults."""
    for row in rows:
        with faults:
            yield _row(row)
    faults.check()


def _json(path: Path) -> Iterator[Entry]:
    content = parse_json(_contents(path), path.name)
    if isinstance(content, dict):
        for name, value in content.items():
            where = f"{path.name}, {describe(name)}"
            yield name, _text(value, Row(content, where), "the list"), where
    elif isinstance(content, list):
        faults = Faults()
        for number, value in enumerate(content, start=1):
            where = f"{path.name}, entry {number}"
            if isinstance(value, dict):
                with faults:
                    yield _row(Row(value, where))
            else:
                faults.add(f"{where}: it must be an object with an id and a list, found {describe(value)}.")
        faults.check()
    else:
        raise UserError(f"{path.name}: it must be an object {{id: list}} or a list of rows, found {describe(content)}.")


def _row(row: Row) -> Entry:
    key = _key(row, LISTS, "the list, as text or as items")
    return row.text(_key(row, IDS, "the conversation's id")), _text(row.fields[key], row, f'"{key}"'), row.where


def _table(path: Path, delimiter: str) -> Iterator[Entry]:
    """Yield the lists of a table with a column of texts, or with a row an item: columns `title`, perhaps `year` and `rank`."""
    content = _contents(path)
    delimiter = _delimiter(content.partition("\n")[0], delimiter)
    try:
        table = pd.read_csv(io.StringIO(content), sep=delimiter, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: not a table with a header ({error}).") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    rows = [Row(dict(cells), f"{path.name}, row {number}") for number, cells in enumerate(table.to_dict("records"), 1)]
    if "title" not in table:
        yield from _rows(rows, Faults())
        return
    lists: dict[str, list[tuple[int, str, str]]] = {}
    for row in rows:
        items = lists.setdefault(row.text(_key(row, IDS, "the conversation's id")), [])
        rank = row.fields.get("rank") or str(len(items) + 1)
        if not rank.strip().isdecimal():
            raise row.error(f'"rank" must be a whole number, found {describe(rank)}.')
        item = {"title": row.fields["title"], "year": row.fields.get("year")}
        items.append((int(rank), _line(item, row, '"title"'), row.where))
    for name, items in lists.items():
        yield name, "\n".join(line for _, line, _ in sorted(items, key=lambda item: item[0])), items[0][2]


def _delimiter(header: str, usual: str) -> str:
    """Return what stands between the names of a header: the usual one, unless only another gives an id and a list."""
    for delimiter in dict.fromkeys([usual, ",", ";", "\t", "|"]):
        names = {name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])}
        if names & set(IDS) and names & {"title", *LISTS}:
            return delimiter
    return usual


def _contents(file: Path) -> str:
    """Return a text file's content, in any encoding that data files may have."""
    notes = Notes()
    content = "".join(read_lines(file, notes))
    if "\0" in content:
        raise UserError(f"{file} is not a text file (it has zero bytes). Give lists as text.")
    notes.warn(_log, f"{file.name}:")
    return content


def _key(row: Row, names: Sequence[str], what: str) -> str:
    """Return the first of `names` that has a value in the row, else the first that is there."""
    there = [name for name in names if name in row.fields]
    found = next((name for name in there if row.fields[name] is not None), next(iter(there), None))
    if found is None:
        raise row.error(
            f"{what} is missing: give it as one of {', '.join(names)}. Keys of this row: {', '.join(row.fields)}."
        )
    return found


def _text(value: Any, row: Row, place: str) -> str:
    """Return a list as text. Strings stand as they are written, other forms of an item become `Title (Year)`. null: empty."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise row.error(f"{place} must be a text or a list of items, found {describe(value)}.")
    return "\n".join(_line(item, row, f"{place}, entry {number}") for number, item in enumerate(value, start=1))


def _line(item: Any, row: Row, place: str) -> str:
    try:
        read = to_item(item)
    except ValueError as error:
        raise row.error(f"{place}: {error}") from None
    return " ".join(item.split()) if isinstance(item, str) else str(read)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "none"
