"""List markers: numbers, bullets, headings, quotes, check boxes."""

import re

_SYMBOLS = (
    "\u2022\u00b7\u2023\u2043\u25aa\u25ab\u25e6\u25cf\u25cb\u25a0\u25a1\u25c6\u25c7\u25ba\u25b6\u25b8\u27a4\u2794\u2192\u21d2"
    "\u2713\u2714\u2705\u2611\u2605\u2606\u2b50\U0001f3ac\U0001f3a5\U0001f37f\U0001f449\ufe0f"
)
_BULLET = re.compile(
    rf"(?:>|#{{1,6}}\s+|[-*+]\s+|[-\u2013\u2014](?=[^\W\d])|[\u2013\u2014]\s+|[{_SYMBOLS}]|\[[ xX]?\]\s+)\s*"
)
_OPENING = r"\*{1,3}|_{1,3}|~~|`|[\"\u201c]"
_ALONE = r"(?:1[89]|20)\d\d(?!\d)(?!.*\b(?:1[89]|20)\d\d\b)"
"""A year without a title before it: in `21 - 2008` the number is the title."""
COUNTED = "no|nr|number|rank|item|movie|film|title|book|pick|recommendation|suggestion|option|choice"
"""Words before a number: Movie 1."""
NAMED = "movie|film|title|name|recommendation"
"""Words before a title: Title: Heat."""
_NUMBER = re.compile(
    rf"""(?P<bold>\*\*|__|\*|_)\#?\d{{1,3}}(?P=bold)(?:\s?[.):]\s*|\s+(?=[^\W\d]|[*_"\[\u201c]))  # **1**. Heat
    |(?P<label>\*\*|__)(?i:{NAMED})(?:(?P=label):|:(?P=label))\s*                    # **Title:**
    |(?P<open>{_OPENING})?(?:
      \#?\d{{1,3}}\s?(?:\\?[.)\]\u3001\uff0e\uff09]){{1,2}}:?                          # 1. 1) 1\. 1.)
        (?:\s+|(?=[^\W\d]|[*_~"'`\u201c\u2018\u00ab\u300a\u300c\[<]))                  # 1.Heat
      |\#?\d{{1,2}}(?::\s+|\s?[-\u2013\u2014]\s+(?!\(\d|{_ALONE}))   # 1: 1 - 1-
      |\#\d{{1,3}}\s+                                                               # #1
      |\(\d{{1,2}}\)\s*|\[\d{{1,2}}\](?!\()\s*|[\uff08]\d{{1,2}}[\uff09]\s*                  # (1) [1]
      |[\u2460-\u2473\u2776-\u277f\u2780-\u2793]\s*|(?:\d\ufe0f?\u20e3)+\s*|\U0001f51f\s*  # circled, keycaps
      |(?i:{COUNTED})
        \.?\s*\#?\d{{1,3}}\s*(?:[.):\u2013\u2014-]\s+|[.):](?=[^\W\d]))                  # Movie 1:
      |(?i:{NAMED}):\s+                                                             # Title:
      |[a-zA-Z]\)\s+|\([a-zA-Z]\)\s+|[a-z]\.\s+                                      # a) (a) a.
      |(?:[ivx]{{1,5}}[.)]|[IVX]{{1,5}}\)|[IVX]{{2,5}}\.)\s+                           # ii. II. IV)
    )""",
    re.VERBOSE,
)
_UNNUMBERED = re.compile(r"[^\W\d_]\w[\w'\u2019-]*(?: [^:.)\d\u2013\u2014-]{12}|$)")
"""Beginning of a line that plainly has no marker: most lines of a trained policy."""
_CLOSINGS = {"\u201c": "\u201d"}
_DASH = re.compile(r"[-\u2013\u2014]\s+(?=\S)")
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))


def unmarked(line: str) -> tuple[str, str]:
    """Return the kind of a line's list marker, and the line without it."""
    line = line.strip()
    if _UNNUMBERED.match(line):
        return "", line
    if not line.isascii():
        line = line.translate(_INVISIBLE).strip()
    kind = ""
    for _ in range(4):  # > - [ ] Heat
        found = _BULLET.match(line)
        if found is None or found.end() == len(line):
            break
        kind = kind or ("" if line[0] in "#>" else "bullet")
        line = line[found.end() :]
    found = _NUMBER.match(line)
    # A bullet protects a title that looks like a number with a colon or a dash: - 24: Redemption (2008)
    if found is None or (kind and found[0].rstrip()[-1:] in ":-\u2013\u2014" and found[0][0].isdigit()):
        return kind, line
    rest, opening = line[found.end() :], found["open"] or ""
    closing = _CLOSINGS.get(opening, opening)
    if opening and rest.startswith(closing):  # **1.** Heat
        rest = rest[len(closing) :].lstrip()
    else:  # **1. Heat**
        rest = opening + rest
    return "number", rest if (dash := _DASH.match(rest)) is None else rest[dash.end() :]
