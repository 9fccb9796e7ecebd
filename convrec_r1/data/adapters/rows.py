"""Readers of JSON Lines, JSON and CSV files, with the place of each row, and of a row's fields.

Every problem is a `UserError` that begins with the place: `train.jsonl, line 12: ...`. The catalog is read with this module
too, so it does not import the schema.
"""

import csv
import io
import itertools
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.data.unpickle import load_plain
from convrec_r1.lists import Item

_TITLE_YEAR = re.compile(r"(.*\S)\s*\((\d{4})\)")
_YEAR = re.compile(r"(\d{1,4})(?:\.0+)?")  # pandas writes a column of years with gaps as 1999.0
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_MISSING: Any = object()
_LONGEST = 100
"""Characters of a value that a message may show."""

ITEM_FORMS = '["Title", 1999], {"title": "Title", "year": 1999} or "Title (1999)"'


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of a row, and its place for messages."""

    fields: dict[str, Any]
    where: str

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def get(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any = _MISSING) -> Any:
        """Return a field, checked for its type. A null counts as absent. UserError for an absent field without a default."""
        value = self.fields.get(key)
        if value is None:
            if default is not _MISSING:
                return default
            found = "null" if key in self.fields else "no such key"
            raise self.error(f'"{key}" must be {expected}, found {found}. Keys of this row: {_keys(self.fields)}.')
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f'"{key}" must be {expected}, found {describe(value)}.')
        return value

    def text(self, key: str, default: Any = _MISSING) -> Any:
        """Return a string that is not blank. A whole number is turned into a string: identifiers come both ways."""
        value = self.get(key, (str, int), "a string", default)
        if value is default:
            return default
        if not str(value).strip():
            raise self.error(f'"{key}" is blank; it must be a string with something in it.')
        return str(value)

    def array(self, key: str, expected: str, default: Any = _MISSING) -> Any:
        return self.get(key, list, expected, default)

    def items(self, key: str, default: Any = _MISSING) -> Any:
        """Return a list of items, each in one of `ITEM_FORMS`, as a tuple."""
        values = self.array(key, f"a list of items such as {ITEM_FORMS}", default)
        if values is default:
            return default
        items = []
        for number, value in enumerate(values, start=1):
            try:
                items.append(to_item(value))
            except ValueError as error:
                raise self.error(f'"{key}", entry {number}: {error}') from None
        return tuple(items)

    def titles(self, key: str) -> tuple[str, ...]:
        """Return a list of strings as a tuple, empty if absent."""
        values = self.array(key, "a list of titles", [])
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise self.error(f'"{key}", entry {number}: a title must be a string, found {describe(value)}.')
        return tuple(values)


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file. UserError for an empty file. Blank lines are skipped."""
    for value, where in read_json_lines(Path(path)):
        if not isinstance(value, dict):
            raise UserError(f"{where}: each line must be a JSON object {{...}}, found {describe(value)}.")
        yield Row(value, where)


def read_json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield (value, place) for each line that is not blank."""
    empty = True
    try:
        with path.open("rb") as file:  # bytes: only \n ends a line, and a wrong byte is found on its line
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                empty = False
                where = f"{path.name}, line {number}"
                yield parse_json(line, where), where
    except OSError as error:
        raise unreadable(path, error) from error
    if empty:
        raise UserError(f"{path} is empty. It must hold one JSON object a line.")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return parse_json(_read_bytes(path), path.name)


def read_table(path: Path, columns: Sequence[str] = (), *, delimiter: str = ",") -> Iterator[Row]:
    """Yield the rows of a CSV file by the names in its header, which are in lower case. Blank rows are skipped.

    Raises:
        UserError: malformed text, no header, a column of `columns` that is missing, a row with too few or too many cells.
    """
    try:
        text = io.StringIO(_read_bytes(path).decode("utf-8"), newline="")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in rows:
            where = f"{path.name}, line {rows.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                if missing := [name for name in columns if name not in header]:
                    raise UserError(
                        f"{where}: the header must name a column `{missing[0]}`, found {', '.join(header)[:120]}."
                    )
            elif len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells where the header has {len(header)}. "
                    f'A cell with a "{delimiter}" in it must be in double quotes.'
                )
            else:
                yield Row(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "tab-separated text"
        raise UserError(f"{path.name}, line {rows.line_num}: not valid {kind} ({error}).") from None
    if not header:
        raise UserError(f"{path} is empty: it has no header and no items.")


def read_entries(path: Path, what: str, of: str, columns: Sequence[str] = ()) -> Iterator[tuple[Any, str]]:
    """Yield (value, place) for each entry of a .csv, .json, .jsonl or .pkl file. The rows of a CSV file are dicts.

    Args:
        what: what the file is, for messages: "a catalog".
        of: what the entries are, for messages: "items".
        columns: those that a CSV file must have.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json", ".jsonl", ".pkl"):
        raise UserError(f"{path}: {what} must be .csv, .json, .jsonl, .pkl, found {path.suffix or 'no extension'}.")
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; it should be {what}.")
    if suffix == ".jsonl":
        yield from read_json_lines(path)
    elif suffix == ".csv":
        yield from ((row.fields, row.where) for row in read_table(path, columns))
    else:
        content = read_json(path) if suffix == ".json" else load_plain(path)
        if not isinstance(content, (list, tuple)):
            raise UserError(f"{path.name}: {what} must be a list of {of}, found {describe(content)}.")
        yield from ((value, f"{path.name}, item {number}") for number, value in enumerate(content, start=1))


def parse_json(text: bytes, where: str) -> Any:
    """Return the value of a JSON text, its strings `encodable`."""
    try:
        value = json.loads(text.decode("utf-8"))
        return encodable(value) if _ESCAPED_HALF.search(text) else value
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).") from None
    except (RecursionError, ValueError) as error:  # nested a thousand deep; an integer of five thousand digits
        raise UserError(f"{where}: not readable as JSON ({error}).") from None


def encodable(value: Any) -> Any:
    """Return a value with lone surrogates replaced by U+FFFD. Scraped text has some; no tokenizer and no file accepts them."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {encodable(key): encodable(entry) for key, entry in value.items()}
    return [encodable(entry) for entry in value] if isinstance(value, list) else value


def to_item(value: Any) -> Item:
    """Read an item in one of `ITEM_FORMS`, or an object with a "name". Raises ValueError with the reason.

    A title of several lines becomes one line. A title that ends in a year in parentheses, without a year beside it, is read as
    `Title (Year)`. Any other title is kept as it is.
    """
    year = None
    if isinstance(value, str):
        title = value
    elif isinstance(value, dict):
        if "title" not in value and "name" not in value:
            raise ValueError(f"an item must be {ITEM_FORMS}, found an object with the keys {_keys(value)}.")
        title, year = value.get("title", value.get("name")), to_year(value.get("year"))
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        title, year = value[0], to_year(value[1])
    else:
        raise ValueError(f"an item must be {ITEM_FORMS}, found {describe(value)}.")
    if not isinstance(title, str):
        raise ValueError(f"a title must be a string, found {describe(title)}.")
    if not title.strip():
        raise ValueError("the title is blank.")
    if "\n" in title:
        title = one_line(title)
    if year is None and (isinstance(value, str) or _TITLE_YEAR.fullmatch(title.strip())):
        return split_title(title)
    return Item(title, year)


def to_year(value: Any) -> int | None:
    """Read a year, a number or a string. None and blank strings are no year. Raises ValueError."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    text = value if isinstance(value, str) else _shown(value)
    if isinstance(value, (int, float, str)) and (digits := _YEAR.fullmatch(text.strip())):
        return int(digits.group(1))
    raise ValueError(
        f"a year must be a number of up to four digits, or empty where it is not known; found {_shorten(_shown(value))}."
    )


def split_title(text: str) -> Item:
    """Read `Title (Year)`. Without a year at the end, the text is the title."""
    text = text.strip()
    found = _TITLE_YEAR.fullmatch(text)
    return Item(found.group(1), int(found.group(2))) if found else Item(text)


def one_line(title: str) -> str:
    """Return a title with single spaces."""
    return " ".join(title.split())


def _read_bytes(path: Path) -> bytes:
    """Return the content of a file, without a byte-order mark."""
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist. Check the path; it is taken from the folder the command started in.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder, a file is needed here.")
    return UserError(f"{path} cannot be read: {error.strerror or error}.")


def describe(value: Any) -> str:
    """Describe a value for a message: its type, and the beginning of the value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the keys {_keys(value)}"
    return f"{type(value).__name__} {_shorten(_shown(value))}"


def _shown(value: Any) -> str:
    """Return the beginning of a value's repr. The values of a pickle can contain each other, so the whole may be endless."""
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value[:_LONGEST])
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 1000 else f"one of {value.bit_length()} bits"
    return reprlib.repr(value)


def _keys(fields: dict) -> str:
    names = (repr(name)[1:-1] if isinstance(name, str) else _shown(name) for name in fields)
    return _shorten(", ".join(itertools.islice(names, 30)) or "(none)", 120)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
