"""Escape control characters in text from data, before it is printed or logged."""

import re

# Control characters except tab and newline (ESC and CSI start terminal commands), Unicode line separators, marks that
# reverse the reading direction, and lone surrogates. Marks that right-to-left text needs are kept.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return `text` with escapes such as `\x1b` in place of control characters."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
