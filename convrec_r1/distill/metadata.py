"""Metadata of items: from files, or from the teacher. Items are embedded by it."""

import ast
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.adapters.rows import (
    Row,
    describe,
    one_line,
    read_json,
    read_jsonl,
    read_table,
    to_item,
)
from convrec_r1.distill.answers import descriptions
from convrec_r1.distill.questions import describe as describe_items
from convrec_r1.distill.scores import blocks
from convrec_r1.distill.teachers.base import Question
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item, fold

_log = logging.getLogger(__name__)

Key = tuple[str, int | None]
"""Folded title and year, as in a catalog."""

_GENRES = ("genre", "genres")
_KEYWORDS = ("keyword", "keywords", "theme", "themes", "tag", "tags")
_PEOPLE = (
    "director", "directors", "writer", "writers", "star", "stars", "actor", "actors", "cast", "author", "authors", "people",
)  # fmt: skip
_PLOT = ("plot", "overview", "description", "summary", "synopsis")
_ONLY_A_YEAR = re.compile(r"\(\d{4}\)")


class Metadata(NamedTuple):
    """An item with its metadata. Unknown fields are empty."""

    title: str
    year: int | None = None
    genres: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    people: tuple[str, ...] = ()
    plot: str = ""

    def text(self) -> str:
        """Return the text to embed: a line each for `Title (Year)`, genres, keywords, people and plot, where known.

        Without labels: a word in all texts would make all items more similar.
        """
        listed = (", ".join(values) for values in (self.genres, self.keywords, self.people))
        return "\n".join(filter(None, (str(Item(self.title, self.year)), *listed, self.plot)))


def key(item: Item | Metadata) -> Key:
    """Return the key of an item in `read_metadata`."""
    return fold(item.title), item.year


def known_metadata(file: str | None, adapter: Adapter, dataset: str) -> dict[Key, Metadata]:
    """Return the metadata that needs no teacher, by `key`. Items without any are left out.

    Args:
        file: distill.metadata, which counts alone if it is given.
        adapter: of the dataset, whose own metadata counts else.
        dataset: its name, for messages.
    Raises:
        UserError: `file` cannot be read or has no metadata.
    """
    source = Path(file).expanduser() if file else adapter.metadata()
    if source is None:
        return {}
    try:
        if isinstance(source, Path):
            described = read_metadata(source)
        else:
            rows = (metadata_of(Row(dict(fields), f"{dataset}, item {k}")) for k, fields in enumerate(source, 1))
            described = {key(item): item for item in rows}
    except UserError as error:
        if file or not isinstance(source, Path):
            raise
        _log.info("No metadata in the catalog's file (%s)", error)  # a catalog may be titles alone
        return {}
    found = {name: item for name, item in described.items() if any(item[2:])}
    if file and not found:
        raise UserError(f"distill.metadata={source}: no item has genres, keywords, people or a plot.")
    if found:
        _log.info("Metadata: %d items from %s", len(found), source if isinstance(source, Path) else f"data={dataset}")
    return found


def described_metadata(interview: Interview, items: Sequence[Item], *, domain: str, batch: int) -> dict[Item, Metadata]:
    """Ask the teacher to describe items, `batch` in a question. Those it leaves out are asked about once more."""
    found: dict[Item, Metadata] = {}
    for title in ("Describing items", "Describing items, again"):
        asked = ask_about([item for item in items if item not in found], domain, batch)
        answers = interview.ask([question for _, question in asked], title) if asked else []
        for (group, _), answer in zip(asked, answers, strict=True):
            for number, fields in descriptions(answer.text, len(group)).items():
                item = group[number - 1]
                found[item] = Metadata(item.title, item.year, **fields)
    return found


def ask_about(items: Sequence[Item], domain: str, batch: int) -> list[tuple[Sequence[Item], Question]]:
    """Return the items in groups of `batch`, with the question about each group."""
    groups = [items[part.start : part.stop] for part in blocks(len(items), batch)]
    return [(group, describe_items(group, domain)) for group in groups]


def read_metadata(path: str | Path) -> dict[Key, Metadata]:
    """Read a file of items' metadata, by `key`: .jsonl (an object a line), .json (a list of objects) or .csv (with a header).

    The item is `title` or `name`, as `Title (Year)` or with `year` beside it. Its other fields, in upper or lower case:
    genre(s), keyword(s), theme(s) or tag(s); director(s), writer(s), star(s), actor(s), cast, author(s) or people, joined in
    this order; the first of plot, overview, description, summary, synopsis that is not blank. Several genres, keywords or
    people are a list, or a string with `|` or else `,` between them (in a CSV also a list as JSON or Python writes it). Null
    and blank values are unknown; other fields are ignored. Of rows for the same item the first counts.

    Raises UserError for a file that is missing, of another kind, malformed (it names the row) or without items.
    """
    path = Path(path)
    readers = {".jsonl": read_jsonl, ".json": _read_json, ".csv": read_table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: metadata must be {', '.join(readers)}, found {path.suffix or 'no extension'}.")
    found: dict[Key, Metadata] = {}
    untitled = repeated = 0
    for row in reader(path):
        metadata = metadata_of(row)
        if _ONLY_A_YEAR.fullmatch(metadata.title):  # ReDial has such a row
            untitled += 1
            continue
        repeated += key(metadata) in found
        found.setdefault(key(metadata), metadata)
    if untitled or repeated:
        _log.warning("%s: left out %d rows without a title and %d repeated items", path.name, untitled, repeated)
    if not found:
        raise UserError(f"{path} describes no items.")
    return found


def metadata_of(row: Row) -> Metadata:
    """Return the metadata in the fields of a row, see `read_metadata`. Raises UserError that names the row."""
    row = Row({name.strip().lower(): value for name, value in row.fields.items()}, row.where)
    try:
        title, year = to_item(row.fields)
    except ValueError as error:
        raise row.error(str(error)) from None
    plots = (one_line(row.get(name, str, "a string", "")) for name in _PLOT)
    return Metadata(
        one_line(title),
        year,
        _all(row, _GENRES),
        _all(row, _KEYWORDS),
        _all(row, _PEOPLE),
        next(filter(None, plots), ""),
    )


def _all(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    """Return the values of several fields, each once: one person may write and direct."""
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
        try:
            value = ast.literal_eval(value.strip())  # JSON writes a list of strings like Python
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise row.error(f'"{name}" looks like a list but cannot be read as one, found {describe(value)}.') from None
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, str):
            raise row.error(f'"{name}", entry {number}: it must be a string, found {describe(entry)}.')
    return value


def _read_json(path: Path) -> Iterator[Row]:
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path.name}: it must be a list of objects, found {describe(content)}.")
    for number, value in enumerate(content, start=1):
        if not isinstance(value, dict):
            raise UserError(f"{path.name}, item {number}: it must be an object {{...}}, found {describe(value)}.")
        yield Row(value, f"{path.name}, item {number}")
