"""Values of users' files: describe them in messages, make their text acceptable to tokenizers and files."""

import itertools
import re
import reprlib
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")
_LONGEST = 100
"""Characters of a value that a message may show."""


def one_line(title: str) -> str:
    """Return a title with single spaces."""
    return " ".join(title.split())


def encodable(value: Any) -> Any:
    """Return a value with lone surrogates replaced by U+FFFD. Scraped text has some; no tokenizer and no file accepts them."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {encodable(key): encodable(entry) for key, entry in value.items()}
    return [encodable(entry) for entry in value] if isinstance(value, list) else value


def describe(value: Any) -> str:
    """Describe a value for a message: its type, and the beginning of the value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the keys {listed(value)}"
    return f"{type(value).__name__} {shorten(shown(value))}"


def shown(value: Any) -> str:
    """Return the beginning of a value's repr. The values of a pickle can contain each other, so the whole may be endless."""
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value[:_LONGEST])
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 1000 else f"one of {value.bit_length()} bits"
    return reprlib.repr(value)


def listed(names: Any) -> str:
    """Return names with commas between them, cut where they are long."""
    found = (repr(name)[1:-1] if isinstance(name, str) else shown(name) for name in names)
    return shorten(", ".join(itertools.islice(found, 30)) or "(none)", 120)


def shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
