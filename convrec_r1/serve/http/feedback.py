"""Thumbs, kept in a file that data=jsonl reads: an item that was liked is a conversation's ground truth."""

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.base.locks import Timeout, locked
from convrec_r1.data.adapters.common import digest
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item


class Full(Exception):
    """The file has reached its limit."""


class Feedback:
    """A file of thumbs, one a line. It belongs to one process as long as it is open.

    Each line is appended with one write, on the disk before `keep` returns. A thumb that is taken back, or turned, is
    overwritten with spaces: readers skip blank lines. So the file can be read at any time.
    """

    def __init__(self, path: Path, limit: int) -> None:
        """limit: bytes of the file.

        Raises:
            UserError: the file cannot be opened, is no file of thumbs, or belongs to another process.
        """
        self.path, self.limit = path, limit
        self._lock = threading.Lock()
        self._held = contextlib.ExitStack()
        self._places: dict[str, tuple[int, int]] = {}
        """Offset and length of each line, by its id."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(f"{path}.lock", timeout=0))
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._held.callback(os.close, self._file)
            self._size = self._read()
        except Timeout:
            raise UserError(f"serve.feedback={path}: another server writes to this file. Give each its own.") from None
        except OSError as error:
            self._held.close()
            raise UserError(f"serve.feedback={path} cannot be written: {error.strerror}.") from error
        except ValueError as error:
            self._held.close()
            raise UserError(f"serve.feedback={path} is no file of thumbs ({error}). Give another name.") from error

    def keep(
        self,
        messages: Sequence[Message],
        item: Item,
        liked: bool | None,
        *,
        seen: Sequence[str] = (),
        model: str = "",
        conversation: str = "",
    ) -> None:
        """Keep a thumb in place of an earlier one on the same item for the same conversation. None takes it back.

        Raises:
            Full: the file has reached its limit.
        """
        said = [{"role": m.role, "content": m.content} for m in messages]
        cluster = digest(json.dumps([conversation, said]))
        identifier = f"{cluster}-{digest(json.dumps([model, item]))}"
        row = {
            "id": identifier,
            "cluster": cluster,
            "messages": said,
            "seen": list(seen),
            "ground_truth": [list(item)] if liked else [],
            "disliked": [] if liked else [list(item)],
            "model": model,
        }
        with self._lock:
            if liked is not None:
                self._append(identifier, json.dumps(row, ensure_ascii=False).encode() + b"\n")
            elif identifier in self._places:
                self._blank(*self._places.pop(identifier))
                os.fsync(self._file)

    def close(self) -> None:
        """Leave the file to others. May be called twice."""
        self._held.close()

    def _append(self, identifier: str, line: bytes) -> None:
        if self._size + len(line) > self.limit:
            raise Full
        if os.pwrite(self._file, line, self._size) != len(line):  # the disk is full
            os.ftruncate(self._file, self._size)
            raise Full
        before = self._places.get(identifier)
        self._places[identifier] = self._size, len(line)
        self._size += len(line)
        if before is not None:
            self._blank(*before)
        os.fsync(self._file)

    def _blank(self, offset: int, length: int) -> None:
        os.pwrite(self._file, b" " * (length - 1), offset)

    def _read(self) -> int:
        """Find the lines of an existing file. Return its size, without a last line that was not written to its end."""
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, offset)
                    break
                if not line.isspace():
                    row = json.loads(line)
                    if not isinstance(row, dict) or "id" not in row:
                        raise ValueError(f"line at byte {offset:,}")
                    self._places[str(row["id"])] = offset, len(line)
                offset += len(line)
        return offset
