"""Set up logging: to the terminal, and with timestamps to the run's run.log. Other libraries log errors only."""

import logging
import textwrap
import warnings
from pathlib import Path

import transformers

from convrec_r1.base.progress import console, label
from convrec_r1.base.visible import visible

_NOISY = (
    "pytorch_lightning",
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "httpx",
    "transformers",
    "datasets",
    "wandb",
)


class _Visible(logging.Formatter):
    """A formatter that escapes control characters: log lines may quote text from data."""

    def __init__(self, fmt: str, indent: str = "") -> None:
        super().__init__(fmt)
        self._indent = indent

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", f"\n{self._indent}")


class _Terminal(logging.Handler):
    """Prints log lines. No path is broken: terminals get line breaks between words only, files and pipes none."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if console.is_terminal:
                text = "\n".join(_wrapped(line) for line in text.split("\n"))
            console.print(text, markup=False, emoji=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, console.width, break_long_words=False, break_on_hyphens=False)


def start_logging(file: Path | None, *, is_first: bool) -> None:
    """Send the package's log lines to the terminal and to a file, and close the handlers of an earlier call.

    Args:
        file: the log file. None: terminal only.
        is_first: False for the other processes of a distributed run: they log errors only, and write no file.
    """
    package = logging.getLogger("convrec_r1")
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    package.setLevel(logging.INFO if is_first else logging.ERROR)
    package.propagate = False
    terminal = _Terminal()
    terminal.setFormatter(_Visible(f"{label()}%(message)s"))
    package.addHandler(terminal)
    if file is not None and is_first:
        to_file = logging.FileHandler(file, encoding="utf-8", delay=True)
        # Lines after the first are indented: text from data cannot imitate a log line.
        to_file.setFormatter(_Visible("%(asctime)s %(levelname)s %(name)s: %(message)s", indent="    "))
        package.addHandler(to_file)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning.*")
    # Lightning's advice on DataLoaders and logging does not apply: StepLoader and Tracker replace both.
    warnings.filterwarnings("ignore", message=r".*(num_workers|does not have many workers|isinstance\(treespec).*")
