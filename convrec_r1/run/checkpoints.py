"""Checkpoint folders: sealed with checksums when they are written, verified before they are used."""

import functools
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from convrec_r1.base.digest import of_file, of_large_file
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import follow, read_json, write_json
from convrec_r1.run.folder import RunFolder

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KIND = "blake2b_64MiB"
DIGESTS = {KIND: of_large_file, "blake2b": of_file}
"""By their names in a manifest. Manifests of before 2026-11-28 have blake2b."""
STATE = "trainer.ckpt"
"""The trainer's state, in checkpoints that a run can resume from. Other checkpoints hold a policy only."""


def seal(folder: Path) -> None:
    """Write a manifest with the size and checksum of every file. All files are on the disk (fsync) when it returns."""
    files = {}
    written = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor(max_workers=1) as disk:
        synced = [disk.submit(_sync, file) for file in written]
        for file in written:
            files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, KIND: of_large_file(file)}
        for done in synced:
            done.result()
    write_json(folder / MANIFEST, files)
    for directory in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync(directory)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a sealed folder, None if it is intact."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = [
            (name, int(entry["bytes"]), str(entry[kind]), DIGESTS[kind])
            for name, entry in files.items()
            for kind in [KIND if KIND in entry else "blake2b"]
        ]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, size, digest, digest_of in wanted:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
        if digest_of(file) != digest:
            return f"the checksum of {name} differs"
    return None


def newest(checkpoints: Path) -> Path | None:
    """Return the newest intact checkpoint that training can resume from, None if there is none.

    Damaged checkpoints are skipped with a warning. Nothing is changed, so every process of a run finds the same one.
    """
    for step in sorted(checkpoints.glob("[0-9]*"), reverse=True):
        if (step / STATE).exists():
            if (wrong := damage(step)) is None:
                return step
            _warn(step, wrong)
    return None


def newest_step(checkpoints: Path) -> int | None:
    """Return the step of the newest checkpoint (`newest`), None if there is none."""
    found = newest(checkpoints)
    return int(found.name) if found else None


def policy_path(checkpoint: str) -> str | Path:
    """Return the folder of the policy in the folder of a run, checkpoint or policy. Otherwise `checkpoint`, a Hub id."""
    path = follow(Path(checkpoint).expanduser())
    chosen = "checkpoints/last/policy"
    if (path / "summary.json").exists():  # it names the selected policy
        chosen = read_json(path / "summary.json").get("policy", chosen)
    for candidate in (follow(path / chosen), path / "policy", path):
        if (candidate / "config.json").exists():
            return candidate
    return checkpoint


def require_whole(folder: Path) -> None:
    """Check a checkpoint folder that may be sealed.

    Raises:
        UserError: the folder has a manifest and is damaged.
    """
    if (folder / MANIFEST).exists() and (wrong := damage(folder)):
        raise UserError(
            f"The checkpoint {folder} is damaged: {wrong}. Copy it again from an intact copy, choose another checkpoint of "
            f"{folder.parent}, or train again with fresh=true."
        )


def run_of(checkpoint: str) -> Path | None:
    """Return the folder of the run that a checkpoint is in: RUN, RUN/checkpoints/STEP or its policy/. None: no run."""
    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        path = follow(path)
    inside = [folder.parent for folder in (path, *path.absolute().parents[:2]) if folder.name == "checkpoints"]
    return next((folder for folder in (path, *inside) if RunFolder(folder).config.is_file()), None)


@functools.cache  # a run asks several times: one warning per checkpoint is enough
def _warn(step: Path, wrong: str) -> None:
    _log.warning("The checkpoint %s is damaged: %s. Using the previous checkpoint.", step, wrong)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk. Some file systems cannot do it for directories."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
