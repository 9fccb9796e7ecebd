"""Large imports: torch, transformers and Lightning make some hundred thousand objects, none of them garbage."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Import in this block without garbage collection, which would walk over all modules again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
