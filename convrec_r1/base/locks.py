"""Locks between processes, also on file systems without flock."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock
from filelock import Timeout as Timeout  # what `locked` raises

_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EPERM, errno.EINVAL)
"""Errors of flock on file systems and mounts that do not support it."""


@contextlib.contextmanager
def locked(path: str | Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    The operating system frees it if the process is killed. Without flock, a file beside it names the process that holds the
    lock, and is valid while that process lives.

    Args:
        path: the lock file. It stays.
        timeout: seconds to wait for it. -1: no limit.
    Raises:
        Timeout: another process holds the lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FLOCK:
            raise
        lock = SoftFileLock(f"{path}.held")
        lock.acquire(timeout)
    try:
        yield
    finally:
        lock.release()
