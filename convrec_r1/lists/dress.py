"""Remove quotes, emphasis and brackets around a title."""

import re

_MARKS = [("**", "**"), ("__", "__"), ("~~", "~~"), *((m, m) for m in "*_`\"'")]
_MARKS += [
    "\u201c\u201d",
    "\u2018\u2019",
    "\u201e\u201c",
    "\u00ab\u00bb",
    "\u300a\u300b",
    "\u300c\u300d",
    "\uff02\uff02",
]
"""Pairs of an opening and a closing mark."""
_OPENINGS = {mark[0]: [pair for pair in _MARKS if pair[0][0] == mark[0]] for mark, _ in _MARKS}
_TRAILING = {mark[-1]: [pair for pair in _MARKS if pair[0][-1] == mark[-1]] for mark, _ in _MARKS}
_BRACKETS = {"[": "]", "(": ")", "{": "}", "\uff3b": "\uff3d"}
_LAYERS = 8
_NEAR = re.compile(r"[*_`\"'\u201d\u2019\u201c\u00bb\u300b\u300d\uff02)\]},.;:!?]*")


def unwrap(title: str, after: str) -> str:
    """Remove quotes and emphasis that enclose the title, or that open before it and close in `after`, after the year.

    A mark that closes inside the title ("Crocodile" Dundee) or never closes ('Tis Autumn, *batteries not included) is part of
    the title. The number of layers is bounded, so that a line of a million stars costs little time.
    """
    title = title.strip()
    near = ""
    if after and (found := _NEAR.match(after)):
        near = found[0]
    for _ in range(_LAYERS):
        shorter, near = _unwrap_once(title, near, after)
        if shorter is title:
            break
        title = shorter
    return title


def _unwrap_once(title: str, near: str, after: str) -> tuple[str, str]:
    """Remove one layer. near: the marks directly after the year that are not yet used."""
    for opening, closing in _OPENINGS.get(title[:1], ()):
        if not title.startswith(opening):
            continue
        if title.endswith(closing) and len(title) > len(opening) + len(closing):
            return title[len(opening) : -len(closing)].strip(" ,"), near
        if len(title) > len(opening) and (closing in near or (len(closing) > 1 and closing in after)):
            return title[len(opening) :].strip(), near
    for opening, closing in _TRAILING.get(title[-1:], ()) if near else ():
        if title.endswith(opening) and near.startswith(closing) and len(title) > len(opening):  # Heat **(1995)**
            return title[: -len(opening)].rstrip(" ,:;\u2013\u2014-"), near[len(closing) :]
    closing = _BRACKETS.get(title[:1])
    if closing and closing in near and closing not in title:
        return title[1:].strip(), near
    return title, near
