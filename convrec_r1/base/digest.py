"""Digests of contents: files, rows, and the source code of this package."""

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
_PART = 64 << 20
_SILENT = re.compile(rb"[ \t]*(?:#[^\n]*)?\r?\n")
"""A line that is blank or a comment."""


def of_value(value: Any) -> str:
    """Return a digest of a value that JSON can write. Dictionaries are sorted."""
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def of_rows(rows: Iterable[Any]) -> str:
    """Return a digest of rows in their order, each a value that JSON can write; objects with slots count as lists."""
    encode = json.JSONEncoder(sort_keys=True, default=slots).encode
    return of_lines(encode(row).encode() for row in rows)


def of_lines(lines: Iterable[bytes]) -> str:
    """Return a digest of lines in their order."""
    digest = blake2b(digest_size=16)
    for line in lines:
        digest.update(line + b"\n")
    return digest.hexdigest()


def of_file(file: Path) -> str:
    """Return a digest of the contents of a file."""
    with file.open("rb") as opened:
        return file_digest(opened, lambda: blake2b(digest_size=16)).hexdigest()


def of_large_file(file: Path) -> str:
    """Return a digest of the contents of a file, computed by several threads: of the digests of its parts of 64 MiB."""
    size = file.stat().st_size
    with file.open("rb") as opened, ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as threads:
        parts = threads.map(
            lambda start: _part(opened.fileno(), start, min(_PART, size - start)), range(0, size, _PART)
        )
        return blake2b(b"".join(parts), digest_size=16).hexdigest()


def _part(handle: int, start: int, length: int) -> bytes:
    """Return the digest of a part of an open file."""
    digest, end = blake2b(digest_size=16), start + length
    while start < end:
        chunk = os.pread(handle, min(1 << 20, end - start), start)
        if not chunk:  # the file was cut while it was read: its digest differs
            break
        digest.update(chunk)
        start += len(chunk)
    return digest.digest()


def of_files(path: str | Path) -> str:
    """Return a digest of a file, or of the names and contents of all files in a folder. A missing path counts as empty."""
    root = Path(path)
    digest = blake2b(digest_size=16)
    for file in files_in(root):
        name = file.relative_to(root).as_posix() if root.is_dir() else ""
        digest.update(f"{name}\n{_known(file, *stamp(file))}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def files_in(path: Path) -> list[Path]:
    """Return the file, or the files in a folder, without hidden ones. Empty if the path does not exist."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    found = (file for file in sorted(path.rglob("*")) if file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def stamp(file: Path) -> tuple[int, int, int]:
    """Return size, modification time [ns] and inode of a file: if they are equal, so are the contents."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def of_model(path: str, revision: str | None = None) -> str:
    """Return a digest of the files of a model's folder, or a Hub id with the commit that `revision` names.

    If the commit is not known (offline, never downloaded), the Hub id has `revision` instead.
    """
    if (folder := Path(path).expanduser()).is_dir():
        return of_files(folder)
    from huggingface_hub import hf_hub_download  # takes seconds to import

    try:
        file = hf_hub_download(path, "config.json", revision=revision)
    except (OSError, ValueError):  # offline, no such repository, no Hub id: loading says more
        return f"{path}@{revision}"
    return f"{path}@{Path(file).parent.name}"


@cache
def of_code(*rooms: str, without: tuple[str, ...] = ()) -> str:
    """Return a digest of source files of this package, without blank lines and comment lines.

    rooms, without: modules or folders of the package, such as "data" or "tasks/train". No rooms: the whole package.
    """

    def files(room: str) -> set[Path]:
        place = _PACKAGE / room
        return {*place.rglob("*.py")} if place.is_dir() else {place.with_suffix(".py")}

    chosen: set[Path] = set().union(*map(files, rooms or ("",))).difference(*map(files, without))
    digest = blake2b(digest_size=8)
    for file in sorted(chosen):
        code = b"".join(line for line in file.read_bytes().splitlines(True) if not _SILENT.fullmatch(line))
        digest.update(f"{file.relative_to(_PACKAGE).as_posix()}\n".encode() + code)
    return digest.hexdigest()


@cache  # one process asks for the same weights several times
def _known(file: Path, *_: int) -> str:
    return of_file(file)


def slots(value: Any) -> list[Any]:
    """Return the values of an object's slots."""
    return [getattr(value, name) for name in value.__slots__]
