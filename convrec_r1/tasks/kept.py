"""task=kept: list the folders that runs share, and delete those that `kept.clear` names."""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base.digest import files_in
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json
from convrec_r1.base.locks import Timeout, locked
from convrec_r1.base.progress import console
from convrec_r1.base.tables import Column, Table
from convrec_r1.config.schema import Config
from convrec_r1.data.prepared import MARK
from convrec_r1.policy.wheel import cache_folder

_MARKS = {"warm_starts": "warm_start.json", "distilled": "card.json", "prepared": MARK}
"""Folders in outputs/, and the file that is written last into each of theirs."""
_PAID = "teacher_cache"
_LEAST = 4
"""Least number of characters of the beginning of a key."""


@dataclass(frozen=True)
class Kept:
    """A folder that runs share."""

    kind: str
    folder: Path
    made: str
    """Version and subject, or "unfinished"."""
    users: tuple[str, ...] = ()
    """Runs that use it."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.stat().st_size for file in files_in(self.folder))

    @property
    def age(self) -> float:
        """Days since it last changed."""
        newest = max((file.stat().st_mtime for file in files_in(self.folder)), default=self.folder.stat().st_mtime)
        return max(0.0, time.time() - newest) / 86_400

    def is_named(self, name: str) -> bool:
        """Return whether an entry of `kept.clear` names this."""
        if name == self.kind:
            return True
        if self.kind == _PAID:
            return False
        if name == "unused":  # by the runs in `outputs`: others train it again
            return self.kind in _MARKS and not self.users
        return len(name) >= _LEAST and self.folder.name.startswith(name)


def kept(cfg: Config) -> list[Kept]:
    """Print what is kept, after deleting what `cfg.kept.clear` names. Return what stays.

    Raises:
        UserError: an entry of `kept.clear` names no folder, or one that a run works on.
    """
    found = list(_find(cfg))
    unknown = [name for name in cfg.kept.clear if not any(one.is_named(name) for one in found)]
    if unknown := [name for name in unknown if name != "unused" and name not in (*_MARKS, _PAID, "models")]:
        raise UserError(
            f"kept.clear={unknown}: nothing has this key or kind. task=kept lists all; give {_LEAST} or more "
            "characters of a key."
        )
    chosen = [one for one in found if any(one.is_named(name) for name in cfg.kept.clear)]
    freed = sum(map(_delete, chosen))
    stays = [one for one in found if one not in chosen]
    columns = [
        Column("key"),
        *(Column(name, text=True) for name in ("kind", "made by", "used by")),
        Column("MiB"),
        Column("days"),
    ]
    rows = [
        [one.folder.name, one.kind, one.made, _listed(one.users), f"{one.size / 2**20:,.1f}", f"{one.age:.0f}"]
        for one in stays
    ]
    if rows:
        shown = Table(tuple(columns), rows).rich(f"Kept in {cfg.outputs}", first_width=None)
        shown.columns[0].no_wrap = True  # keys are copied from here
        console.print(shown)
    said = [f"Deleted {len(chosen)}, {freed / 2**20:,.1f} MiB."] if chosen else []
    said += (
        [f"kept.clear=[{','.join(cfg.kept.clear)}]: there is nothing of it."] if cfg.kept.clear and not chosen else []
    )
    said += [] if rows else [f"Nothing is kept in {cfg.outputs}."]
    console.print(*said, sep="\n", highlight=False, markup=False) if said else None
    return stays


def _find(cfg: Config) -> Iterator[Kept]:
    outputs = Path(cfg.outputs)
    users = _users(outputs)
    for kind, mark in _MARKS.items():
        for folder in _folders(outputs / kind):
            yield Kept(kind, folder, _made(folder / mark), tuple(users[folder.name]))
    answers = Path(cfg.teacher.cache)
    if (answers / "answers.sqlite").exists():
        yield Kept(_PAID, answers, "answers of teachers, which were paid for")
    for folder in _folders(cache_folder()):
        yield Kept("models", folder, "a package's weights, converted")


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*") if path.is_dir() and not path.name.startswith("."))


def _made(mark: Path) -> str:
    if not mark.exists():
        return "unfinished"
    about: dict[str, Any] = read_json(mark)
    version = f"version {about.get('version', 'before 0.3.0')}"
    if "rows" in about:
        return f"{sum(about['rows'].values()):,} conversations of {about['data']}, {version}"
    teacher = about.get("teacher")
    subject = teacher.get("model") or teacher.get("name") if isinstance(teacher, dict) else about.get("model")
    seed = f", seed {about['seed']}" if "seed" in about else ""
    return f"{subject or 'unknown'} on {about.get('data', 'unknown')}{seed}, {version}"


def _users(outputs: Path) -> defaultdict[str, list[str]]:
    """Return key -> runs that recorded its use (`inputs.use`)."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted(outputs.glob("*/*/inputs.json")):
        with suppress(OSError, ValueError, AttributeError, TypeError):
            for name in read_json(file).get("uses", []):
                found[str(name)].append(f"{file.parent.parent.name}/{file.parent.name}")
    return found


def _listed(users: Sequence[str]) -> str:
    if not users:
        return "no run in outputs"
    return users[0] if len(users) == 1 else f"{users[0]} and {len(users) - 1} more"


def _delete(one: Kept) -> int:
    """Delete it, and return its bytes."""
    size = one.size
    lock = one.folder.parent / f"{one.folder.name}.lock"
    try:
        with locked(lock, timeout=0):
            shutil.rmtree(one.folder)
    except Timeout:
        raise UserError(f"A run works on {one.folder}: delete it when that has ended.") from None
    lock.unlink(missing_ok=True)
    return size
