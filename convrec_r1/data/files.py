"""Text files as tools write them: plain or compressed; in UTF-8, UTF-16 or Windows-1252."""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import bar
from convrec_r1.data.faults import Faults, Notes
from convrec_r1.data.values import encodable

PACKED = (".gz", ".bz2", ".xz", ".zip")
"""Extensions of compressed files."""

_LARGE, _STEP = 64 << 20, 1 << 20
"""Bytes of a file whose reading shows its progress, and of a step of it."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_FOREIGN = "lines are not UTF-8 and were read as Windows-1252"
_DAMAGED = "lines have broken characters, read as \ufffd"
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError)
"""Errors of reading a damaged or encrypted archive."""


def extension(path: Path) -> str:
    """Return the extension of a name without that of its compression: ".csv" for catalog.csv and catalog.CSV.gz."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def read_lines(path: Path, notes: Notes) -> Iterator[str]:
    """Yield the lines of a text file with their ends, without a byte-order mark. Only `\\n` ends a line (or `\\r` alone).

    A file that takes a while shows its progress. Lines in another encoding are counted in `notes`.
    """
    try:
        with path.open("rb") as raw, _unpacked(raw, path) as file:
            size = os.fstat(raw.fileno()).st_size
            if size < _LARGE:
                yield from _decoded(file, path.name, notes)
                return
            with bar(f"Reading {path.name} (MB)", -(-size // _STEP)) as progress:
                done = 0
                for number, line in enumerate(_decoded(file, path.name, notes)):
                    if number % 1000 == 0 and (steps := raw.tell() // _STEP - done):
                        progress.advance(steps)
                        done += steps
                    yield line
                progress.advance(-(-size // _STEP) - done)
    except UnicodeError as error:
        raise UserError(f"{path.name}: its text is damaged ({error}). Save the file as UTF-8.") from None
    except _BROKEN as error:
        raise unreadable(path, error) from error


def read_json_lines(path: Path, notes: Notes, faults: Faults | None = None) -> Iterator[tuple[Any, str]]:
    """Yield (value, place) for each line that is not blank. faults: keeps those of lines that are not JSON."""
    empty = True
    for number, line in enumerate(read_lines(path, notes), start=1):
        if line.isspace():
            continue
        empty = False
        where = f"{path.name}, line {number}"
        with faults or contextlib.nullcontext():
            yield parse_json(line, where), where
    if empty:
        raise UserError(f"{path} is empty. It must hold one JSON object a line.")


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text, its strings `encodable`."""
    try:
        value = json.loads(text)
        return encodable(value) if _ESCAPED_HALF.search(text) else value
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise UserError(f"{where}{line}: not valid JSON ({error.msg}, column {error.colno}).") from None
    except (RecursionError, ValueError) as error:  # nested a thousand deep; an integer of five thousand digits
        raise UserError(f"{where}: not readable as JSON ({error}).") from None


def read_json(path: Path, notes: Notes | None = None) -> Any:
    """Return the content of a JSON file."""
    return parse_json("".join(read_lines(path, notes or Notes())), path.name)


def unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist. Check the path; it is taken from the folder the command started in.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder, a file is needed here.")
    return UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.")


@contextlib.contextmanager
def _unpacked(raw: BinaryIO, path: Path) -> Iterator[io.BufferedReader]:
    """Yield the content of a file, unpacked if its first bytes say that it is compressed."""
    head = raw.read(6)
    raw.seek(0)
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"PK\x03\x04": _only_member}
    opener = next((opener for mark, opener in openers.items() if head.startswith(mark)), lambda file: file)
    with opener(raw) as file:  # pyright: ignore[reportArgumentType]
        yield io.BufferedReader(file, 1 << 16)  # pyright: ignore[reportArgumentType]


def _only_member(raw: BinaryIO) -> Any:
    archive = zipfile.ZipFile(raw)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(names) != 1:
        raise UserError(
            f"{raw.name} holds {len(names)} files ({', '.join(names[:5])}). Unpack it and name one of them."
        )
    return archive.open(names[0])


def _decoded(file: io.BufferedReader, name: str, notes: Notes) -> Iterator[str]:
    head = file.peek(1 << 16)
    if encoding := _wide(head):
        yield from io.TextIOWrapper(file, encoding, newline="\n")
        return
    source = file if b"\n" in head or b"\r" not in head else file.read().replace(b"\r", b"\n").splitlines(True)
    for number, line in enumerate(source, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode()
        except UnicodeDecodeError:
            text = line.decode("utf-8", "replace")
            damaged = any(letter > "\x7f" and letter != "\ufffd" for letter in text)  # other letters are UTF-8
            notes.add(_DAMAGED if damaged else _FOREIGN, f"{name}, line {number}")
            yield text if damaged else _western(line)


def _wide(head: bytes) -> str | None:
    """Return the encoding of text with two or four bytes a character, by its mark or its zero bytes."""
    if marked := next((name for mark, name in _MARKS if head.startswith(mark)), None):
        return marked
    half = min(len(head), 1000) // 2
    if half and head[: 2 * half : 2].count(0) > 0.4 * half:
        return "utf-16-be"
    return "utf-16-le" if half and head[1 : 2 * half : 2].count(0) > 0.4 * half else None


def _western(line: bytes) -> str:
    try:
        return line.decode("cp1252")
    except UnicodeDecodeError:  # five bytes are not assigned there
        return line.decode("latin-1")
