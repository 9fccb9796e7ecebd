"""Progress of every long step, with the time left: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY = 15.0  # seconds between lines where there is no terminal

console = Console()
_enabled = True

LABEL = "CONVREC_R1_LABEL"
"""Set for runs that share a terminal: they say which they are, and show lines in place of bars."""


class Bar(Protocol):
    def advance(self, steps: int = 1, note: str = "") -> None: ...


def set_enabled(on: bool) -> None:
    """Processes other than the first show nothing."""
    global _enabled
    _enabled = on


def label() -> str:
    return os.environ.get(LABEL, "")


@contextlib.contextmanager
def bar(description: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar from `done` to `total`; `advance(steps, note)` moves it."""
    if not _enabled:
        yield _Silent()
    elif console.is_terminal and not label():
        columns = (
            TextColumn("{task.description:<24}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=False) as progress:
            task = progress.add_task(description, total=total, completed=done, note="")
            yield _Rich(progress, task)
    else:
        lines = _Lines(f"{label()}{description}", total, done)
        yield lines
        lines.end()


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class _Rich:
    def __init__(self, progress: Progress, task) -> None:
        self.progress, self.task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        fields: dict[str, Any] = {"note": note} if note else {}
        self.progress.update(self.task, advance=steps, **fields)


class _Lines:
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
            text = f"{self.description}: {self.done}/{self.total}, {left:.0f} s left  {self.note}"
            console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        took = time.monotonic() - self.start
        text = f"{self.description}: {self.done}/{self.total} in {took:.1f} s  {self.note}"
        console.print(text, highlight=False, markup=False)
