"""Tables of text: one object, written as Markdown, to the terminal, or as HTML through a template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from convrec_r1.base.visible import visible

# Characters that begin a tag, a link, an image, code, emphasis or a cell.
_SPECIAL = re.compile(r"[\\`*<>|&]|\](?=[(\[:])")


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the heading that it shares with its neighbours (`group`)."""

    name: str
    group: str = ""
    text: bool = False
    """Aligned to the left, with line breaks. False: a number, aligned to the right."""


@dataclass(frozen=True)
class Table:
    """Rows of formatted cells. A row of one cell is a heading inside the table. In HTML, what follows a line end in a cell
    stands below it in small letters."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    strong: int | None = None
    """Number of the row in bold."""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Heading and number of columns of each group, for a first row of headings; empty without groups."""
        found = [(group, len(list(columns))) for group, columns in groupby(c.group for c in self.columns)]
        return found if any(group for group, _ in found) else []

    def pick(self, *names: str) -> "Table":
        """The columns with these headings (the first of each), in this order, after the first column."""
        headings = [column.name for column in self.columns]
        places = [0, *(headings.index(name) for name in names)]
        rows = [[row[place] for place in places] for row in self.rows]
        return replace(self, columns=tuple(self.columns[place] for place in places), rows=rows)

    def markdown(self) -> list[str]:
        """The lines of a Markdown table; text in cells stays text."""
        rule = "".join("|---" if at == 0 or column.text else "|--:" for at, column in enumerate(self.columns)) + "|"
        return [_line([column.name for column in self.columns]), rule, *map(_line, self.rows)]

    def rich(self, title: str | None = None, *, first_width: int | None = 24, **looks: Any) -> RichTable:
        """For `console.print`. first_width: of the first column, at most. looks: arguments of `rich.table.Table`."""
        shown = RichTable(title=title, title_justify="left", **looks)
        for at, column in enumerate(self.columns):
            left = at == 0 or column.text
            shown.add_column(
                escape(column.name),
                justify="left" if left else "right",
                no_wrap=not left,
                overflow="fold",
                max_width=first_width if at == 0 else None,
            )
        for at, row in enumerate(self.rows):
            shown.add_row(*(escape(visible(cell)) for cell in row), style="bold" if at == self.strong else "")
        return shown


def plain(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\g<0>", visible(" ".join(text.split())))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"
