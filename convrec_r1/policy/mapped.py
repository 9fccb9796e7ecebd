"""Weights that lie in a file and are mapped into memory: read when they are used, dropped from RAM in between."""

import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_ALIGNED = 64  # bytes, as torch aligns tensors: kernels then compute the same bits
_DROP = 4  # MADV_DONTNEED of Linux


class MappedTensors:
    """Copies of tensors in a file without a name: the system deletes it when the process ends, however it ends."""

    def __init__(self, tensors: Iterable[Tensor], folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write the file, in `folder`.

        Args:
            tensors: on the CPU. They are written one at a time.
            folder: must be on a disk: a file in RAM saves nothing.
            dtype: of the copies. None: as the tensors.
        Raises:
            OSError: the file could not be written, as on a full disk.
        """
        places: list[tuple[torch.dtype, torch.Size, int]] = []
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for tensor in tensors:
                values = tensor.detach().to(dtype or tensor.dtype).contiguous()
                places.append((values.dtype, values.shape, file.tell()))
                raw = memoryview(values.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
                while raw:
                    raw = raw[file.write(raw) :]
                file.seek(-file.tell() % _ALIGNED, os.SEEK_CUR)
            size = file.truncate()
            # torch opens a file by its name, and this one has none.
            own = f"/proc/self/fd/{file.fileno()}"
            self._storage = torch.UntypedStorage.from_file(own, shared=False, nbytes=size)
        self.tensors = [
            torch.empty(0, dtype=kind).set_(self._storage, start // kind.itemsize, shape)  # type: ignore[call-overload]
            for kind, shape, start in places
        ]
        """The copies, in the order of `tensors`. Not to be written to."""

    def drop(self) -> None:
        """Drop the copies from RAM. They are read from the file, or the system's cache of it, when they are used again."""
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(self._storage.data_ptr()), ctypes.c_size_t(self._storage.nbytes()), _DROP
        )


def mapped(tensors: Iterable[Tensor], folder: Path | None, dtype: torch.dtype | None = None) -> MappedTensors | None:
    """Return copies of tensors in a file in `folder`. None: no folder, not on Linux, or the file cannot be written."""
    if folder is None or sys.platform != "linux":
        return None
    try:
        return MappedTensors(tensors, folder, dtype)
    except OSError as error:
        _log.warning(
            "The reference policy stays in memory: its weights could not be written to %s (%s).", folder, error
        )
        return None
