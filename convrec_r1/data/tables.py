"""Tables of text as tools write them: any common delimiter, quoted or not, with a header or without."""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from convrec_r1.base.errors import UserError
from convrec_r1.data import items
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.files import read_lines
from convrec_r1.data.items import TITLES, holds_year, plain_name
from convrec_r1.data.values import listed, shorten

csv.field_size_limit(1 << 30)
_SEPARATOR = "\x1f"
"""Stands for `::`, as csv reads delimiters of one character only, and for "none": no text has it."""
_DELIMITERS = {"::": _SEPARATOR, "\t": "\t", ";": ";", ",": ",", "|": "|"}
_QUOTED: dict[str, Any] = {}
_ESCAPED: dict[str, Any] = {"escapechar": "\\", "doublequote": False}  # Book-Crossing's "a \"quote\""
_RAW: dict[str, Any] = {"quoting": csv.QUOTE_NONE}  # IMDb's, where a quotation mark is part of the title
_WHOLE = re.compile(r'"(?:[^"]|"")*"')
_HEAD, _ENOUGH = 300, 0.9
"""Rows that decide the layout, and the share of them that must agree."""
_TOLERATED = 0.01
"""Share of rows with another number of cells that is left out. More of them refuse the file."""

_PUBLISHED = {
    ("::", 3): ("movie_id", "title", "genres"),  # MovieLens 1M and 10M, movies.dat
    ("|", 24): ("movie_id", "title", "release_date", "video_release_date", "imdb_url", *(
        f"is:{genre}" for genre in (
            "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
            "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
        )
    )),  # MovieLens 100K, u.item
}  # fmt: skip
"""Columns of tables that are published without a header, by delimiter and number of columns."""


class _Layout(NamedTuple):
    delimiter: str
    """"" for a table of one column."""
    style: dict[str, Any]
    header: tuple[str, ...]
    skip: int
    """Rows before the first of the data."""
    guess: str = ""
    """Name of the column that is taken for the titles, where no known name is found."""


def read_table(
    path: Path, notes: Notes, *, delimiter: str = "", columns: Sequence[str] = ()
) -> Iterator[tuple[dict[str, str], str]]:
    """Yield (cells by column, place) for the rows of a table; column names are in small letters. Blank rows are skipped.

    Delimiter and quoting are those under which the rows agree best. A table without a header has columns if it holds titles
    with their years, or a title and a year. A few rows with too many or too few cells are left out and counted.

    Args:
        delimiter: the known one.
        columns: those that there must be. Empty: a column that names the titles (see `items.TITLES`).
    Raises:
        UserError: an empty file, a missing column, or rows that do not fit the header: the first ten with their lines.
    """
    lines = list(read_lines(path, notes))
    delimiter = _announced(lines) or delimiter or _delimiter(lines)
    layout = _layout(path, lines, delimiter, columns)
    if layout.guess:
        notes.add(f"column was taken for the titles: {layout.guess!r}")
    width, place = len(layout.header), f"{path.name}, line"
    faults, number = Faults(), 0
    for line, cells in islice(_rows(lines, layout), layout.skip, None):
        number += 1
        if not _fits(cells, width):
            faults.add(f"{place} {line}: {_misfit(cells, width, delimiter)}")
    if faults.count > _TOLERATED * number:
        faults.check()
    for line, cells in islice(_rows(lines, layout), layout.skip, None):
        if _fits(cells, width):
            yield dict(zip(layout.header, cells, strict=False)), f"{place} {line}"
        else:
            notes.add("rows that do not fit the header were left out", f"{place} {line}")


def _rows(lines: Sequence[str], layout: _Layout) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield (line, cells) for each row that is not blank, or the fault in place of its cells."""
    text = (line.replace("::", _SEPARATOR) for line in lines) if layout.delimiter == "::" else iter(lines)
    separator = _DELIMITERS.get(layout.delimiter, layout.delimiter or _SEPARATOR)
    rows = csv.reader(text, delimiter=separator, strict=True, **layout.style)
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, error
        else:
            if any(cell.strip() for cell in cells):
                yield rows.line_num, list(map(_unquoted, cells)) if layout.style is _RAW else cells


def _unquoted(cell: str) -> str:
    """Return a cell without the quotation marks around it, where all inside are doubled: rows may differ in that."""
    return cell[1:-1].replace('""', '"') if _WHOLE.fullmatch(cell) else cell


def _fits(cells: list[str] | csv.Error, width: int) -> TypeGuard[list[str]]:
    """Return whether a row has the header's cells; blank ones may follow, as spreadsheets write them."""
    return not isinstance(cells, csv.Error) and (
        len(cells) == width or (len(cells) > width and not any(cell.strip() for cell in cells[width:]))
    )


def _misfit(cells: list[str] | csv.Error, width: int, delimiter: str) -> str:
    if isinstance(cells, csv.Error):
        kind = {",": "CSV", "\t": "tab-separated text"}.get(delimiter, f'text with "{delimiter}" between cells')
        return f"not valid {kind} ({cells})."
    advice = f' A cell with a "{delimiter}" in it must be in double quotes.' if len(cells) > width else ""
    return f"{len(cells)} cells where the header has {width}.{advice}"


def _announced(lines: list[str]) -> str:
    """Return the delimiter in a first line `sep=;`, which spreadsheets read; the line becomes blank."""
    found = re.fullmatch(r"\s*sep=(\S|\t)\s*", lines[0]) if lines else None
    if found:
        lines[0] = "\n"
    return found[1] if found else ""


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter of a table: one whose header names titles, else the one with the most columns that agree."""
    best, found = (False, 0), ""
    for delimiter in _DELIMITERS:
        rows = _head(lines, delimiter)
        if not rows:
            continue
        named = _names_titles(rows[0])
        widths = [len(cells) for cells in rows]
        if widths[0] == 1 and named and len(set(widths[1:])) == 1 and widths[-1] > 1:
            return delimiter  # the header lacks a name: `_layout` says so
        agree = sum(width == widths[0] for width in widths) >= _ENOUGH * len(widths)
        score = (named, widths[0])
        if widths[0] > 1 and (named or agree) and score > best:
            best, found = score, delimiter
    return found


def _head(lines: Sequence[str], delimiter: str, style: dict[str, Any] = _QUOTED) -> list[list[str]]:
    rows = islice(_rows(lines[: 2 * _HEAD], _Layout(delimiter, style, (), 0)), _HEAD)
    return [cells for _, cells in rows if not isinstance(cells, csv.Error)]


def _names_titles(cells: Sequence[str]) -> bool:
    return any(plain_name(cell) in TITLES for cell in cells)


def _layout(path: Path, lines: Sequence[str], delimiter: str, columns: Sequence[str]) -> _Layout:
    """Return the layout of a table: of the ways to quote the one under which most rows fit."""
    styles = {"::": [_RAW], ",": [_QUOTED, _ESCAPED], ";": [_QUOTED, _ESCAPED]}.get(
        delimiter, [_QUOTED, _ESCAPED, _RAW]
    )
    best: tuple[int, _Layout] | None = None
    for style in styles:
        rows = _head(lines, delimiter, style)
        if not rows:
            continue
        layout = _Layout(delimiter, style, *_header(path, rows, delimiter, columns))
        rest = islice(_rows(lines, layout), layout.skip, None)
        bad = sum(not _fits(cells, len(layout.header)) or _swallowed(cells) for _, cells in rest)
        if best is None or bad < best[0]:
            best = bad, layout
        if not bad:
            break
    if best is None:
        if any(not line.isspace() for line in lines):
            raise UserError(f"{path.name}, line 1: not valid CSV (an open quotation mark).")
        raise UserError(f"{path} is empty: it has no header and no items.")
    return best[1]


def _swallowed(cells: list[str] | csv.Error) -> bool:
    """Return whether a cell holds lines with tabs: an open quotation mark in a table without quoting."""
    return not isinstance(cells, csv.Error) and any("\n" in cell and "\t" in cell for cell in cells)


def _header(
    path: Path, rows: Sequence[Sequence[str]], delimiter: str, columns: Sequence[str]
) -> tuple[tuple[str, ...], int, str]:
    """Return the names of the columns, the rows before the first of the data, and a name that was taken for the titles'."""
    first = [cell.strip().lower() for cell in rows[0]]
    if columns:
        if missing := [name for name in columns if name not in first]:
            raise UserError(f"{path.name}: the header must name a column `{missing[0]}`, found {listed(first)}.")
        return tuple(first), 1, ""
    if _names_titles(first):
        return _unique(first, rows), 1, ""
    width = len(first)
    if (delimiter, width) in _PUBLISHED and first[0].isdigit():
        return _PUBLISHED[delimiter, width], 0, ""
    titled = [at for at in range(width) if _mostly(rows[1:] or rows, at, holds_year)]
    dated = [at for at in range(width) if _mostly(rows[1:] or rows, at, _is_year)]
    if len(titled) != 1 and (named := items.columns(tuple(first))[0]):  # a name like "Display title"
        return _unique(first, rows), 1, named[0]
    if len(titled) != 1 and not (width == 2 and len(dated) == 1):
        found = " | ".join(shorten(cell.strip(), 30) for cell in rows[0])
        raise UserError(
            f"{path.name}: the first row must name the columns, one of them `title` (and one `year` if there are years); "
            f"found {shorten(found, 120)}."
        )
    title = titled[0] if len(titled) == 1 else 1 - dated[0]
    if not (holds_year(first[title]) if titled else _is_year(first[dated[0]])):
        return tuple("title" if at == title else name for at, name in enumerate(_unique(first, rows))), 1, first[title]
    names = {title: "title", **({dated[0]: "year"} if len(dated) == 1 and width == 2 else {})}
    return tuple(names.get(at, f"column {at + 1}") for at in range(width)), 0, ""


def _unique(names: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return a header with each name once, without blank ones at its end, and with one for the numbers that R writes first."""
    found = [name if name not in names[:at] else f"{name} {at + 1}" for at, name in enumerate(names)]
    while found and not found[-1].strip():
        found.pop()
    numbered = len(rows) > 1 and all(len(cells) == len(names) + 1 and cells[0].isdigit() for cells in rows[1:])
    return ("", *found) if numbered else tuple(found)


def _mostly(rows: Sequence[Sequence[str]], at: int, test: Any) -> bool:
    cells = [cells[at] for cells in rows if at < len(cells) and cells[at].strip()]
    return bool(cells) and sum(map(test, cells)) >= _ENOUGH * len(cells)


def _is_year(cell: str) -> bool:
    return re.fullmatch(r"\s*[12]\d{3}\s*", cell) is not None
