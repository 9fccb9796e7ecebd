"""A run's checkpoints as folders: sealed with checksums when they are written, checked before anything goes on from them."""

import json
import logging
import os
from hashlib import blake2b
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "trainer.ckpt"
"""Of a checkpoint to go on from: the trainer's state. Others hold a policy only."""


_named: set[Path] = set()
"""Damaged checkpoints that were told of: what a run asks several times is said once."""


def seal(folder: Path) -> None:
    """Write a manifest of every file's size and checksum, once all of them are on the disk and not just on their way."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "blake2b": _digest(file)}
    write_json(folder / MANIFEST, files)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync(place)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, None if nothing is."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = [(name, int(entry["bytes"]), str(entry["blake2b"])) for name, entry in files.items()]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, size, digest in wanted:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
        if _digest(file) != digest:
            return f"{name} is not what was written (its checksum differs)"
    return None


def newest(checkpoints: Path) -> Path | None:
    """The newest checkpoint that training can go on from, None if there is none. Damaged ones are passed over, and named.

    Reads only: every process of a run finds the same one.
    """
    for step in sorted(checkpoints.glob("[0-9]*"), reverse=True):
        if not (step / STATE).exists():
            continue
        wrong = damage(step)
        if wrong is None:
            return step
        if step not in _named:
            _named.add(step)
            _log.warning("The checkpoint %s is damaged: %s. Going back to the one before.", step, wrong)
    return None


def newest_step(checkpoints: Path) -> int | None:
    """The step of `newest`."""
    found = newest(checkpoints)
    return int(found.name) if found else None


def require_whole(folder: Path) -> None:
    """UserError where a checkpoint's folder was sealed and has been damaged since."""
    if (folder / MANIFEST).exists() and (wrong := damage(folder)):
        raise UserError(
            f"The checkpoint {folder} is damaged: {wrong}. Copy it again from where it is whole, choose another one of "
            f"{folder.parent}, or train again with fresh=true."
        )


def _digest(file: Path) -> str:
    digest = blake2b(digest_size=16)
    with file.open("rb") as opened:
        while part := opened.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """That the folder holds its files must be on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
