"""Checks of the options `data`, before any file is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import follow
from convrec_r1.base.plugins import locate
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.config import DEMONSTRATIONS, DataConfig, PromptStyle


def problems(cfg: DataConfig, n: int) -> list[str]:
    """Return a sentence for everything about `data` that cannot work. n: items in a list."""
    wrong = []
    try:
        adapter = locate(cfg._target_, "data")
    except UserError as error:
        return [str(error)]
    if trait(adapter, "needs_path") and not cfg.path:
        wrong.append(f"data={cfg.name} reads files: say where they are with data.path=DIR.")
    for key, value in (("data.path", cfg.path), ("data.catalog", cfg.catalog)):
        if value and not exists(value):
            wrong.append(f"{key}={value}: there is no such file or folder (from {Path.cwd()}).")
    try:
        cfg.instruction.format(n=n)
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        wrong.append(
            f"data.instruction: {type(error).__name__} {error}: only {{n}} may stand in braces; double all others."
        )
    if cfg.demonstrations not in DEMONSTRATIONS and not exists(cfg.demonstrations, within="dataset/train.jsonl"):
        wrong.append(
            f"data.demonstrations={cfg.demonstrations}: choose {', '.join(DEMONSTRATIONS)}, or the folder of a task=distill "
            "run (one with dataset/train.jsonl)."
        )
    asked = trait(adapter, "published_prompt_n")
    if cfg.prompt is PromptStyle.published and asked not in (None, n):
        wrong.append(
            f"data.prompt=published asks for {asked} items in its own words and n={n}: set n={asked} or data.prompt=ours."
        )
    return wrong


def has_simulated_teacher(cfg: DataConfig) -> bool:
    """Return whether teacher=simulated knows the users of this dataset."""
    try:
        return trait(locate(cfg._target_, "data"), "simulated_teacher")
    except UserError:  # `problems` reports it
        return True


def trait(adapter: Any, name: str) -> Any:
    """Return a class attribute of an adapter, or its default where a function stands in for the class."""
    return getattr(adapter, name, getattr(Adapter, name))


def exists(path: str, test: Callable[[Path], bool] = Path.exists, within: str = ".") -> bool:
    """Return whether `test` holds for `within` the path. False for a path that is none."""
    try:
        return test(follow(Path(path).expanduser() / within))
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody, a NUL
        return False
