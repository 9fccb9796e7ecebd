"""Read the entries of catalogs, metadata and conversations from any kind of file."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.files import PACKED, extension, parse_json, read_json_lines, read_lines, unreadable
from convrec_r1.data.items import columns, plain_name
from convrec_r1.data.tables import read_table
from convrec_r1.data.unpickle import load_plain
from convrec_r1.data.values import describe, encodable

_LINES, _JSON = (".jsonl", ".ndjson"), (".json",)
TABLES = (".csv", ".tsv", ".tab", ".txt", ".dat", ".item", ".psv")
KINDS = (*TABLES, *_JSON, *_LINES, ".parquet", ".pkl")
_ID = re.compile(r"[A-Za-z]{0,2}\d+")
_PAGES = (
    "items", "movies", "films", "books", "results", "data", "records", "entries", "rows", "titles", "catalog", "docs",
)  # fmt: skip
"""Keys under which files of one object hold the list of their entries."""


def read_entries(path: Path, what: str, notes: Notes, faults: Faults | None = None) -> Iterator[tuple[Any, str]]:
    """Yield (value, place) for each entry of a file: text with delimiters, JSON, JSON Lines, Parquet or a plain pickle.

    The rows of a table are dicts. JSON may be a list, a list under one key, columns as pandas writes them, an object
    id -> title, title -> year, or title (or id) -> metadata, or JSON Lines under another name. Text may be compressed.

    Args:
        what: what the file is, for messages: "a catalog".
        faults: keeps those of lines that are not JSON. None: the first one is raised.
    Raises:
        UserError: a file of another kind, that is missing, or that cannot be read.
    """
    kind = extension(path)
    if kind not in KINDS:
        advice = " Save the sheet as CSV." if kind in (".xlsx", ".xls", ".ods") else ""
        raise UserError(
            f"{path}: {what} must be {', '.join(KINDS)} (text also with {', '.join(PACKED)}), found "
            f"{path.suffix or 'no extension'}.{advice}"
        )
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; it should be {what}.")
    if kind in TABLES:
        yield from ((encodable(fields), where) for fields, where in read_table(path, notes))
    elif kind in _LINES:
        yield from read_json_lines(path, notes, faults)
    elif kind in _JSON:
        yield from _read_json(path, what, notes, faults)
    else:
        content = load_plain(path) if kind == ".pkl" else _read_parquet(path)
        yield from _placed(content, path.name, what)


def _read_json(path: Path, what: str, notes: Notes, faults: Faults | None) -> Iterator[tuple[Any, str]]:
    text = "".join(read_lines(path, notes))
    try:
        content = parse_json(text, path.name)
    except UserError as error:
        if "Extra data" not in str(error):
            raise
        yield from read_json_lines(path, Notes(), faults)  # JSON Lines under another name
    else:
        yield from _placed(content, path.name, what)


def _placed(content: Any, name: str, what: str) -> Iterator[tuple[Any, str]]:
    entries = (
        content if isinstance(content, (list, tuple)) else _of_object(content) if isinstance(content, dict) else None
    )
    if entries is None:
        raise UserError(
            f"{name}: {what} must be a list of items, an object id -> title, or title -> metadata; found {describe(content)}."
        )
    yield from ((value, f"{name}, item {number}") for number, value in enumerate(entries, start=1))


def _of_object(content: Mapping[Any, Any]) -> list[Any] | None:
    """Return the entries of an object. None: it has none of the forms of `read_entries`."""
    values = list(content.values())
    kinds = {type(value) for value in values}
    table = content.get("data")
    if isinstance(names := content.get("columns"), list) and isinstance(table, list):  # pandas, orient="split"
        return [dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in table]
    if columns(tuple(content))[0] and kinds == {dict}:
        return [{name: cells.get(row) for name, cells in content.items()} for row in values[0]]
    if columns(tuple(content))[0] and kinds == {list}:
        return [dict(zip(content, cells, strict=False)) for cells in zip(*values, strict=False)]
    lists = [(key, value) for key, value in content.items() if isinstance(value, list)]
    if len(lists) == 1:
        name, rows = lists[0]
        if plain_name(name) in _PAGES or (rows and isinstance(rows[0], dict)):
            return rows
    if columns(tuple(content))[0]:
        return [content]
    if kinds == {dict}:
        return [row if columns(tuple(row))[0] else {"title": key, **row} for key, row in content.items()]
    if kinds == {str}:
        keys_are_ids = all(_ID.fullmatch(str(key)) for key in content)
        return values if keys_are_ids or not all(_ID.fullmatch(value) for value in values) else list(content)
    if kinds and kinds <= {int, float, type(None)}:  # title -> year, or title -> number of the item
        years = all(value is None or 1000 <= value <= 2100 for value in values)
        return list(content.items()) if years else list(content)
    return None if content else []


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet as parquet  # datasets brings it

    try:
        return [encodable(row) for row in parquet.read_table(path).to_pylist()]
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # damaged files raise nearly anything
        raise UserError(f"{path} cannot be read as Parquet ({type(error).__name__}: {error}).") from error
