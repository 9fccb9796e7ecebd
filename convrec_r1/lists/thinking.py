"""Find and remove a model's thoughts, which are not part of a list."""

import re

_THOUGHT_NAME = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)"
_THOUGHT = re.compile(
    rf"(?P<open><\|?(?:begin_of_)?{_THOUGHT_NAME}\|?>|\[THINK\]|\u25c1think\u25b7|<\|channel\|>analysis<\|message\|>)"
    rf"|<\|?(?:/|end_of_){_THOUGHT_NAME}\|?>|\[/THINK\]|\u25c1/think\u25b7|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
"""The marks of a model's thoughts: <think>, <thinking>, <|begin_of_thought|>, [THINK], and the channels of gpt-oss."""


def thoughts(text: str) -> list[tuple[int, int]]:
    """Return the places (start, end) of a model's thoughts in a text, their marks included.

    Thoughts that never end take the rest of the text. An end without a beginning ends thoughts that the prompt began.
    """
    found: list[tuple[int, int]] = []
    start: int | None = None
    for mark in _THOUGHT.finditer(text):
        if mark["open"]:
            start = mark.start() if start is None else start
        elif start is None:
            found = [(0, mark.end())]
        else:
            found.append((start, mark.end()))
            start = None
    return found if start is None else [*found, (start, len(text))]


def thought_mark(text: str) -> int:
    """Return 1 if a text is the mark that begins thoughts, -1 if it is the one that ends them, else 0."""
    found = _THOUGHT.fullmatch(text.strip())
    return 0 if found is None else 1 if found["open"] else -1


def strip_thoughts(text: str) -> str:
    """Return a text without a model's thoughts."""
    at, kept = 0, []
    for start, end in thoughts(text):
        kept.append(text[at:start])
        at = end
    return "".join([*kept, text[at:]]) if kept else text
