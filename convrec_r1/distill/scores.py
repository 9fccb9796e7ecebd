"""The scores of every conversation for every catalog item: too many for memory, so they lie on disk meanwhile."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from convrec_r1.base.errors import UserError

Rows = Sequence[int] | np.ndarray
_AT_A_TIME = 2**23
"""Scores that are in memory at a time where the caller does not say."""


class ScoreStore:
    """[rows, columns] float32 in a file of its own in `folder`; a context manager, at whose end the file is removed.

    The file takes 4 bytes a score: 3.0 GB for 100,000 conversations and 7,404 items. Its room is taken at once, so that
    a disk that is too small is known before anything is computed: UserError says how much is needed and where. Scores
    are 0 until written. Only the rows at work are mapped into memory.
    """

    def __init__(self, folder: Path, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        folder.mkdir(parents=True, exist_ok=True)
        needed = 4 * rows * columns
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise _no_room(folder, rows, columns, needed, free)
        handle, name = tempfile.mkstemp(prefix="scores.", suffix=".f32", dir=folder)
        self._path = Path(name)
        try:
            _take(handle, needed)
        except OSError as error:
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _no_room(folder, rows, columns, needed, shutil.disk_usage(folder).free) from error
        finally:
            os.close(handle)

    def __enter__(self) -> "ScoreStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    def write(self, rows: Rows, scores: np.ndarray) -> None:
        """Put [B, columns] scores in place of what the rows held. ValueError where one is not a finite number."""
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite numbers")
        if len(rows):
            first, stop, within = _span(rows)
            self._map(first, stop, "r+")[within] = scores

    def read(self, rows: Rows) -> np.ndarray:
        """[B, columns] float32, a copy. `rows` need not follow one another; what lies between them is mapped too."""
        if not len(rows):
            return np.empty((0, self.columns), dtype=np.float32)
        first, stop, within = _span(rows)
        return np.array(self._map(first, stop, "r")[within])

    def add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Add values[i] to the score at (rows[i], columns[i]). A place that occurs more than once gets them all."""
        order = np.argsort(rows, kind="stable")
        rows, columns, values = rows[order], columns[order], np.asarray(values, dtype=np.float32)[order]
        if not np.isfinite(values).all():
            raise ValueError("scores must be finite numbers")
        if len(rows) and not (
            rows[0] >= 0 and rows[-1] < self.rows and 0 <= columns.min() <= columns.max() < self.columns
        ):
            raise IndexError(f"places outside {self.rows} rows and {self.columns} columns")
        for block in self.blocks():
            part = slice(*np.searchsorted(rows, [block.start, block.stop]))
            if part.start < part.stop:
                mapped = self._map(block.start, block.stop, "r+")
                np.add.at(mapped, (rows[part] - block.start, columns[part]), values[part])

    def blocks(self) -> Iterator[range]:
        """All rows, as many at a time as fit a few dozen MiB."""
        size = max(1, _AT_A_TIME // max(1, self.columns))
        return (range(start, min(start + size, self.rows)) for start in range(0, self.rows, size))

    def top(
        self,
        k: int,
        *,
        exclude: Sequence[np.ndarray] | None = None,
        only: Sequence[np.ndarray] | None = None,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
    ) -> np.ndarray:
        """The k columns with the highest scores of each row, best first: [rows, k] int64, -1 where there are fewer.

        exclude       [rows] columns that are left out of each row, such as what the user has seen
        only          [rows] the only columns that each row may have; None: all
        scale, shift  [columns] the order is that of scale * score + shift, computed in float64 (Adjust)

        Equal scores stand in the order of the columns.
        """
        chosen = np.full((self.rows, k), -1, dtype=np.int64)
        for block in self.blocks():
            scores = self.read(block)
            if scale is not None or shift is not None:
                scores = scores * (1.0 if scale is None else np.asarray(scale, dtype=np.float64))
                scores = scores + (0.0 if shift is None else np.asarray(shift, dtype=np.float64))
            if only is not None:
                allowed = _places(only, block)
                kept = np.full_like(scores, -np.inf)
                kept[allowed] = scores[allowed]
                scores = kept
            if exclude is not None:
                scores[_places(exclude, block)] = -np.inf
            chosen[block.start : block.stop] = top_columns(scores, k)
        return chosen

    def _map(self, start: int, stop: int, mode: Literal["r", "r+"]) -> np.ndarray:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of {self.rows}")
        if self.columns == 0:
            return np.empty((stop - start, 0), dtype=np.float32)
        offset = 4 * start * self.columns
        return np.memmap(self._path, np.float32, mode, offset, (stop - start, self.columns))


def top_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """The k columns with the highest scores of each row of [B, C], best first: [B, k] int64, -1 where there are fewer.

    Equal scores stand in the order of the columns; a column at -inf is never chosen.
    """
    chosen = np.full((len(scores), k), -1, dtype=np.int64)
    k = min(k, scores.shape[1])
    if k == 0 or not len(scores):
        return chosen
    held = torch.from_numpy(scores)
    # Which of equal values torch.topk takes is its own affair, but the k-th highest value is the same in any case.
    least = held.topk(k, dim=1).values[:, -1:].clamp(min=torch.finfo(held.dtype).min)  # [B, 1]
    reached = held >= least  # [B, C]
    for row in (reached.sum(dim=1) > k).nonzero()[:, 0].tolist():
        above = held[row] > least[row]
        last = (held[row] == least[row]).nonzero()[: k - int(above.sum()), 0]
        reached[row] = above
        reached[row, last] = True
    row, column = (index.numpy() for index in reached.nonzero(as_tuple=True))  # columns in order
    at = np.arange(len(row)) - np.searchsorted(row, row)  # a chosen column's number within its row
    values = np.full((len(scores), k), -np.inf, dtype=scores.dtype)
    values[row, at] = scores[row, column]
    chosen[row, at] = column
    best = np.argsort(-values, axis=1, kind="stable")
    chosen[:, :k] = np.take_along_axis(chosen[:, :k], best, axis=1)
    return chosen


def _span(rows: Rows) -> tuple[int, int, slice | np.ndarray]:
    """The first of the rows, the one after the last, and where they all lie from the first. At least one row."""
    if isinstance(rows, range) and rows.step == 1:
        return rows.start, rows.stop, slice(None)
    index = np.asarray(rows, dtype=np.int64)
    return int(index.min()), int(index.max()) + 1, index - index.min()


def _places(columns: Sequence[np.ndarray], block: range) -> tuple[np.ndarray, np.ndarray]:
    """(row within the block, column) of each of the columns listed for the block's rows."""
    listed = [np.asarray(columns[row], dtype=np.int64) for row in block]
    row = np.repeat(np.arange(len(block)), [len(part) for part in listed])
    return row, np.concatenate([np.empty(0, dtype=np.int64), *listed])


def _take(handle: int, size: int) -> None:
    """Give the file its size and, where the system can, its room: else a full disk would end the process later."""
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                raise


def _no_room(folder: Path, rows: int, columns: int, needed: int, free: int) -> UserError:
    return UserError(
        f"The scores of {rows:,} conversations for {columns:,} items take {needed / 2**30:.1f} GiB on disk while Stage 1 "
        f"runs, but {folder} has {free / 2**30:.1f} GiB left. Give outputs=FOLDER on a larger disk, or fewer conversations "
        "(data.train_size, distill.held_out)."
    )
