"""Read files, and write them atomically: a file is replaced as a whole or not at all."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It replaces `path` if the block raises nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def fixed_part(pattern: Path) -> Path:
    """Return the leading folders of a glob pattern: those without wildcards, or with wildcards in the name of a real folder."""
    folder = Path()
    for part in pattern.parts:
        if re.search(r"[*?[]", part) and not (folder / part).is_dir():
            break
        folder /= part
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file. A missing file has none.

    A last line without a newline is ignored: another process may still be writing it.

    Raises:
        UserError: a line is not JSON or not UTF-8. The message names the file and the line.
    """
    if not path.exists():
        return []
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    rows = []
    for number, line in enumerate(complete.split(b"\n"), start=1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
    return rows


_ARROW = "-> "
"""Start of a text file that stands for a symbolic link."""


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, relative to its folder. An existing link is replaced atomically.

    Where the file system has no symbolic links, `link` is a text file, "-> TARGET", which `follow` reads.
    """
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    try:
        scratch.symlink_to(target)
    except OSError:
        write_text(link, f"{_ARROW}{target}\n")
    else:
        os.replace(scratch, link)


def pointed(link: Path) -> str | None:
    """Return the target of a link that `point` made. None: `link` is something else, or missing."""
    if link.is_symlink():
        return os.readlink(link)
    if not link.is_file() or link.stat().st_size > 4096:
        return None
    text = link.read_bytes().decode("utf-8", "replace")
    return text.removeprefix(_ARROW).strip() if text.startswith(_ARROW) else None


def follow(path: str | Path) -> Path:
    """Return `path` with the text files that stand for symbolic links replaced by their targets."""
    found = Path()
    for part in Path(path).parts:
        target = None if (found / part).is_symlink() else pointed(found / part)
        found /= target or part
    return found
