"""Rows of JSON Lines and other files, with the place of each row, and of a row's fields.

Every problem is a `UserError` that begins with the place: `train.jsonl, line 12: ...`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.data.entries import read_entries
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.files import read_json_lines
from convrec_r1.data.items import ITEM_FORMS, to_item
from convrec_r1.data.values import describe, listed
from convrec_r1.lists import Item

_MISSING: Any = object()
_YEARS = (str, int, type(None))


@lru_cache(2**16)
def _known_item(title: str, *year: str | int | None) -> Item:
    """Return the item of a string, or of a title and a year. Files name the same items again and again."""
    return to_item([title, *year] if year else title)


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
            raise self.error(f'"{key}" must be {expected}, found {found}. Keys of this row: {listed(self.fields)}.')
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
        return tuple(self._item(key, number, value) for number, value in enumerate(values, start=1))

    def seen(self, key: str) -> tuple[str, ...]:
        """Return the titles of a list of items or titles, empty if absent. Blank ones are left out."""
        values = self.array(key, "a list of titles", [])
        return tuple(
            self._item(key, number, value).title
            for number, value in enumerate(values, start=1)
            if value is not None and not (isinstance(value, str) and not value.strip())
        )

    def titles(self, key: str) -> tuple[str, ...]:
        """Return a list of strings as a tuple, empty if absent."""
        values = self.array(key, "a list of titles", [])
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise self.error(f'"{key}", entry {number}: a title must be a string, found {describe(value)}.')
        return tuple(values)

    def _item(self, key: str, number: int, value: Any) -> Item:
        try:
            if type(value) is list and len(value) == 2 and type(value[0]) is str and type(value[1]) in _YEARS:
                return _known_item(value[0], value[1])
            return _known_item(value) if type(value) is str else to_item(value)
        except ValueError as error:
            raise self.error(f'"{key}", entry {number}: {error}') from None


def read_jsonl(path: str | Path, notes: Notes | None = None, faults: Faults | None = None) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file. UserError for an empty file. Blank lines are skipped.

    faults: keeps those of lines that cannot be read. None: the first one is raised.
    """
    return _objects(read_json_lines(Path(path), notes or Notes(), faults), faults)


def read_rows(path: Path, what: str, notes: Notes, faults: Faults) -> Iterator[Row]:
    """Yield the objects of a file in any form of `read_entries`. what: what the file is, for messages."""
    return _objects(read_entries(path, what, notes, faults), faults)


def _objects(values: Iterator[tuple[Any, str]], faults: Faults | None) -> Iterator[Row]:
    for value, where in values:
        if isinstance(value, dict):
            yield Row(value, where)
            continue
        message = f"{where}: each line must be a JSON object {{...}}, found {describe(value)}."
        if faults is None:
            raise UserError(message)
        faults.add(message)
