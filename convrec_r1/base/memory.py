"""Memory of this process: return to the system what is not used."""

import contextlib
import ctypes
import gc


def trim() -> None:
    """Collect garbage, and return free memory to the system."""
    gc.collect()  # a trainer and its module refer to each other
    release()


def release() -> None:
    """Return free memory to the system: glibc keeps that of tensors below 32 MiB for reuse."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
