"""The scores of every conversation for every catalog item, in a memory-mapped file: they are too many for memory."""

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from convrec_r1.base.errors import UserError

Rows = Sequence[int] | np.ndarray
_AT_A_TIME = 2**23
"""Scores in memory at a time."""


class ScoreStore(AbstractContextManager):
    """[rows, columns] float32 in a temporary file in `folder`. A context manager; removes the file at its end.

    The file takes 4 bytes a score: 3.0 GB for 100,000 conversations and 7,404 items. The space is allocated at once:
    UserError says how much is missing. Scores are 0 until written.
    """

    def __init__(self, folder: Path, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="scores.", suffix=".f32", dir=folder)
        self._path = Path(name)
        needed = 4 * rows * columns
        try:
            _allocate(handle, needed)
        except OSError as error:
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(folder).free
            raise UserError(
                f"The scores of {rows:,} conversations for {columns:,} items take {needed / 2**30:.1f} GiB on disk while "
                f"Stage 1 runs, but {folder} has {free / 2**30:.1f} GiB left. Give outputs=FOLDER on a larger disk, or fewer "
                "conversations (data.train_size, distill.held_out)."
            ) from error
        finally:
            os.close(handle)
        shape = (rows, columns)
        self._scores = np.memmap(self._path, np.float32, "r+", shape=shape) if needed else np.zeros(shape, np.float32)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, rows: Rows, scores: np.ndarray) -> None:
        """Replace the scores of `rows` by [B, columns]. ValueError if one is not finite."""
        self._scores[np.asarray(rows, dtype=np.int64)] = _finite(scores)

    def read(self, rows: Rows) -> np.ndarray:
        """Return a copy of the scores of `rows`, [B, columns] float32."""
        return np.array(self._scores[np.asarray(rows, dtype=np.int64)])

    def add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Add values[i] to the score at (rows[i], columns[i]). Repeated places get all their values."""
        np.add.at(self._scores, (rows, columns), _finite(values).astype(np.float32))

    def top(
        self,
        k: int,
        *,
        exclude: Sequence[np.ndarray] | None = None,
        only: Sequence[np.ndarray] | None = None,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the k columns with the highest scores of each row, best first: [rows, k] int64, -1 after the last.

        Args:
            exclude: [rows] columns to leave out of each row, such as seen items.
            only: [rows] the only columns allowed in each row. None: all.
            scale, shift: [columns]; order by scale * score + shift, computed in float64 (Adjust).
        """
        chosen = np.full((self.rows, k), -1, dtype=np.int64)
        for block in blocks(self.rows, max(1, _AT_A_TIME // max(1, self.columns))):
            scores = self.read(block)
            if scale is not None and shift is not None:
                scores = scale * scores + shift
            for row, at in enumerate(block):
                if only is not None:
                    scores[row, np.delete(np.arange(self.columns), only[at])] = -np.inf
                if exclude is not None:
                    scores[row, exclude[at]] = -np.inf
            chosen[block.start : block.stop] = top_columns(scores, k)
        return chosen


def top_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k columns with the highest scores of each row of [B, C], best first: [B, k] int64, -1 after the last.

    Equal scores are in the order of the columns. A column at -inf is never chosen.
    """
    chosen = np.full((len(scores), k), -1, dtype=np.int64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    finite = np.take_along_axis(scores, order, axis=1) > -np.inf
    chosen[:, : order.shape[1]] = np.where(finite, order, -1)
    return chosen


def blocks(total: int, size: int) -> list[range]:
    """Return the numbers from 0 to total - 1 in ranges of at most `size`."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _finite(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    return scores


def _allocate(handle: int, size: int) -> None:
    """Allocate the space of a file: without it, a disk that fills up later kills the process."""
    if size > shutil.disk_usage(handle).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not supported by the file system
                raise
