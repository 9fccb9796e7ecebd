"""What is known of items beside title and year, and the text by which they are embedded."""

import ast
import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.rows import Row, describe, one_line, parse_json, read_jsonl, to_item, unreadable
from convrec_r1.lists import Item, fold

_log = logging.getLogger(__name__)

Key = tuple[str, int | None]
"""Folded title and year: two items are the same where these agree, as in a catalog."""

_GENRES = ("genre", "genres")
_KEYWORDS = ("keyword", "keywords", "theme", "themes", "tag", "tags")
_PEOPLE = (
    "director", "directors", "writer", "writers", "star", "stars", "actor", "actors", "cast", "author", "authors", "people",
)  # fmt: skip
_PLOT = ("plot", "overview", "description", "summary", "synopsis")
_ONLY_A_YEAR = re.compile(r"\(\d{4}\)")


@dataclass(frozen=True)
class Metadata:
    """An item and what is known of it; what is not known is empty."""

    title: str
    year: int | None = None
    genres: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    plot: str = ""

    @property
    def item(self) -> Item:
        return Item(self.title, self.year)

    def text(self) -> str:
        """What is embedded: a line each for `Title (Year)`, genres, keywords, people, plot; what is not known has no line.

        No labels: a word that every text holds would bring all items nearer to each other.
        """
        listed = (", ".join(values) for values in (self.genres, self.keywords, self.people))
        return "\n".join(part for part in (str(self.item), *listed, self.plot) if part)


def key(item: Item | tuple[str, int | None]) -> Key:
    """By which `read_metadata` keeps what it reads."""
    return fold(item[0]), item[1]


def read_metadata(path: str | Path) -> dict[Key, Metadata]:
    """A file of items' metadata, by `key`: .jsonl (an object a line), .json (a list of objects) or .csv (with a header).

    The item is `title` or `name`, as `Title (Year)` or with `year` beside it. Its other fields, in upper or lower case:
    genre(s), keyword(s), theme(s) or tag(s); director(s), writer(s), star(s), actor(s), cast, author(s) or people, joined in
    this order; the first of plot, overview, description, summary, synopsis that is not blank. Several genres, keywords or
    people are a list, or a string with `|` or else `,` between them (in a CSV also a list as JSON or Python writes it). Null
    and blanks are unknown; other fields are passed over. Of rows for the same item the first counts.

    Raises UserError for a file that is missing, of another kind, malformed (it names the row) or without items.
    """
    path = Path(path)
    readers = {".jsonl": read_jsonl, ".json": _read_json, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: metadata must be {', '.join(readers)}, found {path.suffix or 'no extension'}.")
    found: dict[Key, Metadata] = {}
    untitled = repeated = 0
    for row in reader(path):
        metadata = metadata_of(row)
        if _ONLY_A_YEAR.fullmatch(metadata.title):  # ReDial's metadata has such a row, which its catalog leaves out too
            untitled += 1
            continue
        repeated += key(metadata.item) in found
        found.setdefault(key(metadata.item), metadata)
    if untitled or repeated:
        _log.warning(
            "%s: left out %d rows without a title and %d for items that came before", path.name, untitled, repeated
        )
    if not found:
        raise UserError(f"{path} describes no items.")
    return found


def metadata_of(row: Row) -> Metadata:
    fields = {name.strip().lower(): value for name, value in row.fields.items()}
    row = Row(fields, row.where)
    try:
        title, year = to_item(fields)
    except ValueError as error:
        raise row.error(str(error)) from None
    plot = next((text for name in _PLOT if (text := _plot(row, name))), "")
    return Metadata(one_line(title), year, _all(row, _GENRES), _all(row, _KEYWORDS), _all(row, _PEOPLE), plot)


def _plot(row: Row, name: str) -> str:
    return one_line(row.get(name, str, "a string", ""))


def _all(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    """The values of several fields, each once: who wrote and directed is one person."""
    unique: dict[str, str] = {}
    for name in names:
        for value in _values(row, name):
            unique.setdefault(fold(value), one_line(value))
    unique.pop("", None)
    return tuple(unique.values())


def _values(row: Row, name: str) -> list[str]:
    value = row.get(name, (str, list), "a list of strings, or a string with | or , between them", [])
    if isinstance(value, str):
        if not (value.strip().startswith("[") and value.strip().endswith("]")):
            return value.split("|" if "|" in value else ",")
        value = _written_list(row, name, value)
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, str):
            raise row.error(f'"{name}", entry {number}: it must be a string, found {describe(entry)}.')
    return value


def _written_list(row: Row, name: str, text: str) -> list[Any]:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # TypeError: a list as a key
            continue
        if isinstance(value, list):
            return value
    raise row.error(f'"{name}" looks like a list but cannot be read as one, found {describe(text)}.')


def _read_json(path: Path) -> Iterator[Row]:
    content = parse_json(_bytes(path), path.name)
    if not isinstance(content, list):
        raise UserError(f"{path.name}: it must be a list of objects, found {describe(content)}.")
    for number, value in enumerate(content, start=1):
        if not isinstance(value, dict):
            raise UserError(f"{path.name}, item {number}: it must be an object {{...}}, found {describe(value)}.")
        yield Row(value, f"{path.name}, item {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        text = _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in rows:
            where = f"{path.name}, line {rows.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells where the header has {len(header)}. "
                    "A cell with a comma in it must be in double quotes."
                )
            yield Row(dict(zip(header, cells, strict=True)), where)
    except csv.Error as error:
        raise UserError(f"{path.name}, line {rows.line_num}: not valid CSV ({error}).") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise unreadable(path, error) from error
