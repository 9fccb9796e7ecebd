"""Text from configs and data inside Markdown: it stays text, in its cell, on its line."""

import re
from collections.abc import Sequence

from convrec_r1.base.visible import visible

# What would begin a tag, a link, an image, code, emphasis or another cell.
_ACTING = re.compile(r"[\\`*<>|&]|\](?=[(\[:])")


def plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    return _ACTING.sub(r"\\\g<0>", visible(" ".join(text.split())))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines; the first column is text, the others numbers."""
    return [_row(header), "|---" + "|--:" * (len(header) - 1) + "|", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"
