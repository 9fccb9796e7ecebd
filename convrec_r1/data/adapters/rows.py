"""Read rows of files: JSON Lines with line numbers, fields with their types checked, items in every spelling.

Anything wrong is a `UserError` that begins with the place: `train.jsonl, line 12: ...`. The catalog is read with this
module too, so it does not import the schema.
"""

import io
import itertools
import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.lists import Item

_TITLE_YEAR = re.compile(r"(.*\S)\s*\((\d{4})\)")
_YEAR = re.compile(r"(\d{1,4})(?:\.0+)?")  # pandas writes a column of years with gaps as 1999.0
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_MISSING: Any = object()

_LONGEST = 100  # characters of a value that are looked at for a message

ITEM_FORMS = '["Title", 1999], {"title": "Title", "year": 1999} or "Title (1999)"'


@dataclass(frozen=True, slots=True)
class Row:
    """A row's fields, and where it stands, for messages."""

    fields: dict[str, Any]
    where: str

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def get(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any = _MISSING) -> Any:
        """The field, of the given type. Null counts as absent; an absent one without a default is an error."""
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
        """A string that is not blank; a number is taken as one, as identifiers come both ways."""
        value = self.get(key, (str, int), "a string", default)
        if value is default:
            return default
        if not str(value).strip():
            raise self.error(f'"{key}" is blank; it must be a string with something in it.')
        return str(value)

    def array(self, key: str, expected: str, default: Any = _MISSING) -> Any:
        return self.get(key, list, expected, default)

    def items(self, key: str, default: Any = _MISSING) -> Any:
        """A list of items as a tuple, each in one of `ITEM_FORMS`."""
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
        """A list of titles; absent, it is empty."""
        values = self.array(key, "a list of titles", [])
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise self.error(f'"{key}", entry {number}: a title must be a string, found {describe(value)}.')
        return tuple(values)


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """The objects of a JSON Lines file. Blank lines, a byte-order mark and CRLF are fine; an empty file is not."""
    path = Path(path)
    for value, where in read_json_lines(path):
        if not isinstance(value, dict):
            raise UserError(f"{where}: each line must be a JSON object {{...}}, found {describe(value)}.")
        yield Row(value, where)


def read_json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Every line's value, with its place."""
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


def parse_json(text: bytes, where: str) -> Any:
    """Its value, every string of which can be written again."""
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
    """The value with halves of surrogate pairs, as scraped text may hold, replaced by U+FFFD: no tokenizer takes them, and
    no file can hold them."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {encodable(key): encodable(entry) for key, entry in value.items()}
    return [encodable(entry) for entry in value] if isinstance(value, list) else value


def to_item(value: Any) -> Item:
    """An item in one of `ITEM_FORMS`, or a metadata object with a "name". Raises ValueError that says what is wrong.

    A title is kept as it is, but for two cases that no list could name: one over several lines becomes one line, and
    one that ends in a year in parentheses, with no year beside it, is read as `Title (Year)`.
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
    """A year written as a number or a string; None, "" and blanks are no year. Raises ValueError."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        digits = (
            _YEAR.fullmatch(_shown(value).strip()) if isinstance(value, int) else _YEAR.fullmatch(str(value).strip())
        )
        if digits:
            return int(digits.group(1))
    found = _shorten(_shown(value))
    raise ValueError(f"a year must be a number of up to four digits, or empty where it is not known; found {found}.")


def split_title(text: str) -> Item:
    """`Title (Year)` as published; without a year at the end, the text is the title."""
    text = text.strip()
    found = _TITLE_YEAR.fullmatch(text)
    return Item(found.group(1), int(found.group(2))) if found else Item(text)


def one_line(title: str) -> str:
    """White space inside a title as single spaces."""
    return " ".join(title.split())


def open_text(path: Path) -> io.StringIO:
    """Return a file's text, newlines as they are, for the csv module. Raises UserError where it is not UTF-8."""
    try:
        return io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None


def unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist. Check the path; it is taken from the folder the command started in.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder, a file is needed here.")
    return UserError(f"{path} cannot be read: {error.strerror or error}.")


def describe(value: Any) -> str:
    """What a value is, for messages: its type, and the value where it is short."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the keys {_keys(value)}"
    return f"{type(value).__name__} {_shorten(_shown(value))}"


def _shown(value: Any) -> str:
    """The beginning of a value's repr, which of a pickle's values may have no end: they can hold each other."""
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
