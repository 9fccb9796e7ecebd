"""Metadata of items: from files, or from the teacher. Items are embedded by it."""

import ast
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.adapters.rows import Row
from convrec_r1.data.entries import read_entries
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.items import REPEATED, UNKNOWN, plain_name, to_titled_item
from convrec_r1.data.values import describe, encodable, one_line
from convrec_r1.distill.answers import descriptions
from convrec_r1.distill.questions import describe as describe_items
from convrec_r1.distill.scores import blocks
from convrec_r1.distill.teachers.base import Question
from convrec_r1.distill.teachers.interview import Interview
from convrec_r1.lists import Item, fold

_log = logging.getLogger(__name__)

Key = tuple[str, int | None]
"""Folded title and year, as in a catalog."""

_GENRES = ("genre", "genres", "listedin", "category", "categories")
_KEYWORDS = ("keyword", "keywords", "plotkeywords", "theme", "themes", "tag", "tags")
_PEOPLE = (
    "director", "directors", "directorname", "writer", "writers", "star", "stars", "actor", "actors", "actor1name",
    "actor2name", "actor3name", "cast", "author", "authors", "bookauthor", "people",
)  # fmt: skip
_PLOT = ("plot", "overview", "description", "bookdescription", "plotsummary", "summary", "synopsis")
_NAMES = ("name", "title", "keyword", "genre")
"""Keys of the name where a list holds objects, as TMDB's do."""
_FLAG = "is:"
"""Begins the columns of MovieLens 100K that say with 1 or 0 whether a film is of a genre."""


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
            rows = (metadata_of(dict(fields), f"{dataset}, item {k}") for k, fields in enumerate(source, 1))
            described = {key(item): item for item in rows if item}
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
    """Read a file of items' metadata, by `key`, in any form in which a catalog is read (`Catalog.load`).

    Fields beside title and year, by their names in small letters without signs: genres, keywords, people (joined in the order
    of `_PEOPLE`), and the first of `_PLOT` that is not blank. Several genres, keywords or people are a list of strings or of
    objects with a name (in a table as JSON or Python writes it), or a string with `|`, else `;`, else `,` between them. Null
    and blank values are unknown; other fields are ignored. Of rows for the same item the first counts.

    Raises UserError for a file that is missing, of another kind, malformed (the first ten rows are named) or without items.
    """
    path = Path(path)
    notes, faults = Notes(), Faults()
    found: dict[Key, Metadata] = {}
    for value, where in read_entries(path, "metadata", notes):
        with faults:
            metadata = metadata_of(value, where, notes)
            if metadata is not None and found.setdefault(key(metadata), metadata) is not metadata:
                notes.add(REPEATED, where)
    faults.check()
    notes.warn(_log, f"{path.name}:")
    if not found:
        raise UserError(f"{path} describes no items.")
    return found


def metadata_of(value: Any, where: str, notes: Notes | None = None) -> Metadata | None:
    """Return the metadata of an item and its other fields, see `read_metadata`; None without a title.

    Raises UserError that begins with the item's place `where`.
    """
    row = Row(value if isinstance(value, dict) else {}, where)
    try:
        item = to_titled_item(value, where, notes)
    except ValueError as error:
        raise row.error(str(error)) from None
    if item is None:
        return None
    names = {plain_name(name): name for name in row.fields}
    plots = (one_line(row.get(names[name], str, "a string", "")) for name in _PLOT if name in names)
    flags = [name.removeprefix(_FLAG) for name, value in row.fields.items() if name.startswith(_FLAG) and value == "1"]
    genres, keywords, people = (
        _all(row, [names[name] for name in group if name in names]) for group in (_GENRES, _KEYWORDS, _PEOPLE)
    )
    return Metadata(
        one_line(item.title), item.year, (*genres, *flags), keywords, people, next(filter(_known, plots), "")
    )


def _known(text: str) -> bool:
    return text.strip().casefold() not in UNKNOWN and not (text.startswith("(no ") and text.endswith(" listed)"))


def _all(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    """Return the values of several fields, each once: one person may write and direct."""
    unique: dict[str, str] = {}
    for name in names:
        for value in _values(row, name):
            if _known(value):
                unique.setdefault(fold(value), one_line(value))
    return tuple(unique.values())


def _values(row: Row, name: str) -> list[str]:
    expected = "a list of strings, or a string with | ; or , between them"
    value = row.get(name, (str, list, float), expected, [])
    if isinstance(value, float):  # pandas writes NaN for unknown
        return []
    if isinstance(value, str):
        if not (value.strip().startswith("[") and value.strip().endswith("]")):
            return value.split(next((mark for mark in "|;" if mark in value), ","))
        value = _literal(row, name, value.strip())
    names = []
    for number, entry in enumerate(value, start=1):
        found = _name(entry) if isinstance(entry, dict) else entry
        if isinstance(found, str):
            names.append(found)
        elif found is not None:
            raise row.error(f'"{name}", entry {number}: it must be a string, found {describe(found)}.')
    return names


def _literal(row: Row, name: str, text: str) -> list[object]:
    """Return a list that a cell holds as JSON or Python writes it."""
    for read in (json.loads, ast.literal_eval):
        try:
            return encodable(list(read(text)))
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    raise row.error(f'"{name}" looks like a list but cannot be read as one, found {describe(text)}.')


def _name(entry: dict) -> object:
    """Return the name in an object, None without one."""
    return next((entry[key] for key in _NAMES if key in entry), None)
