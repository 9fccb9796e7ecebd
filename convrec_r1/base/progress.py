"""Progress of long steps with the time left: a bar on a terminal, otherwise a line every 15 seconds."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY = 15.0  # seconds

console = Console()
_enabled = True

LABEL = "CONVREC_R1_LABEL"
"""Environment variable with the label of a run that shares its terminal with others. Such runs print lines, not bars."""


class Bar:
    """The progress of one step. This base class shows nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done. `note` is shown beside the progress, until the next one."""


def set_enabled(on: bool) -> None:
    """Turn progress on or off. Only the first process of a distributed run shows it."""
    global _enabled
    _enabled = on


def label() -> str:
    """Return the prefix of this run's lines, "" if it has its terminal to itself."""
    return os.environ.get(LABEL, "")


@contextlib.contextmanager
def bar(description: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress from `done` to `total` while the block runs."""
    if not _enabled:
        yield Bar()
    elif console.is_terminal and not label():
        columns = (
            TextColumn("{task.description:<24}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=False) as progress:
            yield _Rich(progress, progress.add_task(description, total=total, completed=done, note=""))
    else:
        lines = _Lines(f"{label()}{description}", total, done)
        yield lines
        lines.end()


class _Rich(Bar):
    def __init__(self, progress: Progress, task) -> None:
        self.progress, self.task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        fields: dict[str, Any] = {"note": note} if note else {}
        self.progress.update(self.task, advance=steps, **fields)


class _Lines(Bar):
    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.first, self.done = description, total, done, done
        self.start = self.last = time.monotonic()
        self.note = ""

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self.note = note or self.note
        now = time.monotonic()
        if now - self.last >= _LINE_EVERY and self.done < self.total:
            self.last = now
            left = (now - self.start) / max(1, self.done - self.first) * (self.total - self.done)
            self._print(f"{left:.0f} s left")

    def end(self) -> None:
        self._print(f"{time.monotonic() - self.start:.1f} s in total")

    def _print(self, time_text: str) -> None:
        text = f"{self.description}: {self.done}/{self.total}, {time_text}  {self.note}"
        console.print(text, highlight=False, markup=False)
