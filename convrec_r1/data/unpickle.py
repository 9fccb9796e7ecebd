"""Load pickles of plain containers, strings and numbers. Anything else is refused, as a pickle can run code."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError

# The containers that a pickle names instead of spelling them out with an opcode; `__builtin__` is Python 2's module.
_ADMITTED = {"set": set, "frozenset": frozenset, "bytearray": bytearray}


def load_plain(path: str | Path) -> Any:
    """Return the content of a pickle. UserError for a file that is missing, damaged, or has anything but plain data.

    No code of the pickle runs: all that it could call is looked up by `find_class`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        _check_size(content)
        return _PlainUnpickler(io.BytesIO(content), path).load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}: {error}).") from error


def _check_size(content: bytes) -> None:
    """Raise ValueError for a pickle of a few bytes that would make Python allocate all memory."""
    for code, value, _ in pickletools.genops(content):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and value is not None and value > len(content):
            raise ValueError(f"it numbers {value} objects and has {len(content)} bytes")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _ADMITTED:
            return _ADMITTED[name]
        raise UserError(
            f"{self._path} is refused: its pickle names {module}.{name}, and only lists, tuples, dicts, sets, strings "
            "and numbers are read, as a pickle can run any code. Write the data as CSV or JSON instead."
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UserError(
            f"{self._path} is refused: its pickle refers to an object outside the file. Write the data as CSV or JSON."
        )
