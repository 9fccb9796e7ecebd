"""Text from data on a terminal or in a log: characters that would act there are shown instead."""

import re

# Control characters but for tab and line end (ESC and CSI begin a terminal's commands), line ends that only some programs
# know, and marks that reverse the order of what follows on a line. Marks of right-to-left text itself stay.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""With `\x1b` and the like in place of characters that act."""
    return _ACTING.sub(lambda found: ascii(found[0])[1:-1], text)
