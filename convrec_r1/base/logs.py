"""Log lines: to the terminal, and with times to the run's run.log. Other libraries are held to warnings."""

import logging
import warnings
from pathlib import Path

import transformers
from rich.logging import RichHandler

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
    """What comes from data does nothing to a terminal."""

    def __init__(self, fmt: str, set_in: str = "") -> None:
        super().__init__(fmt)
        self._set_in = set_in

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", f"\n{self._set_in}")


def start_logging(file: Path | None, *, is_first: bool) -> None:
    """Send log lines to the terminal and to `file`; whatever an earlier run of this process had set up is closed."""
    package = logging.getLogger("convrec_r1")
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    package.setLevel(logging.INFO if is_first else logging.ERROR)
    package.propagate = False
    terminal = RichHandler(console=console, show_time=False, show_path=False, show_level=False, markup=False)
    terminal.setFormatter(_Visible(f"{label()}%(message)s"))
    package.addHandler(terminal)
    if file is not None and is_first:
        to_file = logging.FileHandler(file, encoding="utf-8", delay=True)
        # A text over several lines is set in, so that none of them can pass for a line of the log.
        to_file.setFormatter(_Visible("%(asctime)s %(levelname)s %(name)s: %(message)s", set_in="    "))
        package.addHandler(to_file)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning.*")
    # Standard advice of Lightning that does not apply: our loader is no torch DataLoader, our logging is our own.
    warnings.filterwarnings("ignore", message=r".*(num_workers|does not have many workers|isinstance\(treespec).*")
