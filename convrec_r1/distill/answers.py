"""Read a teacher's text: lists, ratings, descriptions. Never raises: what cannot be read is left out."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

from convrec_r1.lists import Item, fold, lines, parse_entry, strip_thoughts

SCORES = range(-2, 3)
"""Allowed ratings (arXiv 2510.20150)."""
_LONGEST = 1000
"""Characters of a line. Longer ones hold no entry."""


class Description(TypedDict):
    """A teacher's description of an item: fields of `Metadata`."""

    genres: tuple[str, ...]
    keywords: tuple[str, ...]
    plot: str


@dataclass(frozen=True)
class Ratings:
    """A judge's ratings of items 1..count."""

    scores: dict[int, int]
    """Number -> score, where it could be read."""
    faulty: tuple[int, ...]
    """All other numbers, ascending: missing, out of range, fractional or rated twice differently."""


def unusable(kind: str, text: str) -> str | None:
    """Return why an answer to a question of this kind is not usable: empty, only thoughts, or no list. None: it is.

    Ratings and descriptions that cannot be read are asked for again one by one.
    """
    said = _spoken(text)
    if not said.strip():
        return "the answer holds thoughts and nothing else" if text.strip() else "the answer is empty"
    if kind == "recommend" and not recommended(said):
        return f"no item can be read in the answer, which begins {' '.join(said.split())[:120]!r}"
    return None


def recommended(text: str, *, has_yearless: bool = True) -> list[Item]:
    """Return a teacher's list as items, best first, each once (same folded title and year).

    Entries are the numbered, the bulleted or the bare lines: the kind with the most years, numbered first. Each is read by
    `lists.parse_entry`. Bare lines without a year are entries only if no bare line has one. `has_yearless` False: entries
    without a year are dropped.
    """
    kinds: dict[str, list[Item]] = {"number": [], "bullet": [], "": []}
    for line in lines(_encodable(text)):
        item, marker = parse_entry(" ".join(line.split()), year_required=False)
        if item is not None and any(map(str.isprintable, item.title)):
            kinds[marker].append(item)
    if any(item.year is not None for item in kinds[""]):
        kinds[""] = [item for item in kinds[""] if item.year is not None]
    filled = [kind for kind in kinds.values() if kind] or [[]]
    chosen = max(filled, key=lambda kind: sum(item.year is not None for item in kind))  # the first of equals
    unique: dict[tuple[str, int | None], Item] = {}
    for item in chosen:
        if has_yearless or item.year is not None:
            unique.setdefault((fold(item.title), item.year), item)
    return list(unique.values())


# `3: 2`, `3 = 2`, `[3]: 2`, `"3": 2`, `Item 3: 2`, `3. 2`, `3) +2`, `(3) 2`, `3. Title (1999): 2`; a remark without digits may
# follow. `3 - 1` may mean two things, and `3 1` and `3.1` are no ratings.
_RATING = re.compile(
    r"(?:item |no\. ?)?[\"\[(#]*(?P<number>\d{1,6})(?:[\"\]]*\s*[:=]|[.):]\s(?:.*\S\s*[:=])?)"
    r"\s*\"?(?P<score>[+\u2212\u2013-]?\d{1,4})(?:\.0+)?\"?\s*(?:[.,;]|[,;(\[#\u2013\u2014-]\D*)?",
    re.IGNORECASE,
)
_NEXT_RATING = re.compile(r"[,;]\s+(?=\"?\d{1,6}\"?\s*:)")
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def ratings(text: str, count: int) -> Ratings:
    """Read a judge's answer: a JSON object {"NUMBER": SCORE}, alone or fenced, or a line `NUMBER: SCORE` an item.

    What may be a rating and may be something else is not read: it is asked for again. Numbers outside 1..count are ignored.
    """
    text = _spoken(text)
    scores: dict[int, int | None] = {}
    for number, score in _json_ratings(text) or list(_line_ratings(text)):
        if 1 <= number <= count:
            valid = score if score in SCORES else None
            scores[number] = valid if scores.get(number, valid) == valid else None
    read = {number: score for number, score in sorted(scores.items()) if score is not None}
    return Ratings(read, tuple(number for number in range(1, count + 1) if number not in read))


def _line_ratings(text: str) -> Iterator[tuple[int, int]]:
    for line in lines(text):
        line = re.sub(r"^[-*\u2022>]\s+", "", " ".join(line.split())).replace("*", "").replace("`", "").strip("_{} ")
        for part in _NEXT_RATING.split(line):
            if len(part) <= _LONGEST and (found := _RATING.fullmatch(part)):
                yield int(found["number"]), _whole(found["score"])


def _json_ratings(text: str) -> list[tuple[int, int | None]]:
    found: list[tuple[int, int | None]] = []
    for part in [text, *(match[1] for match in _FENCE.finditer(text))]:
        pairs: list[tuple[str, Any]] = []
        try:
            json.loads(part, object_pairs_hook=pairs.extend)  # of inner objects too, and of repeated keys
        except (ValueError, RecursionError):
            continue
        found += [(int(key), _json_score(value)) for key, value in pairs if re.fullmatch(r"[0-9]{1,6}", key.strip())]
    return found


def _json_score(value: Any) -> int | None:
    if isinstance(value, str):
        return _whole(value) if re.fullmatch(r"\s*[+\u2212\u2013-]?[0-9]{1,4}\s*", value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in SCORES:
        return None
    return int(value)


def _whole(written: str) -> int:
    return int(written.replace("\u2212", "-").replace("\u2013", "-"))


def descriptions(text: str, count: int) -> dict[int, Description]:
    """Read JSON objects {"item": 3, "genres": [...], "keywords": [...], "plot": "..."}: number -> description.

    They may stand one a line, in an array, in another object or fenced. A broken one costs only itself. Genres and keywords
    may be strings with commas. Objects without a number from 1 to count, with a field of another type or with empty fields
    are left out. Of two for one item the first counts.
    """
    found: dict[int, Description] = {}
    for match in re.finditer(r"\{[^{}]*\}", _spoken(text)):
        try:
            fields = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        number = str(fields.get("item")).strip()
        description = _description(fields)
        if description is not None and re.fullmatch(r"[0-9]{1,6}", number) and 1 <= int(number) <= count:
            found.setdefault(int(number), description)
    return found


def _description(fields: dict[str, Any]) -> Description | None:
    genres, keywords, plot = _strings(fields.get("genres")), _strings(fields.get("keywords")), fields.get("plot")
    if genres is None or keywords is None or not isinstance(plot, str | None):
        return None
    plot = _one_line(plot or "")
    return Description(genres=genres, keywords=keywords, plot=plot) if genres or keywords or plot else None


def _strings(value: Any) -> tuple[str, ...] | None:
    """Return the strings, each once, without blank ones. None: the value is neither strings nor null."""
    parts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return None
    unique: dict[str, str] = {}
    for part in filter(None, map(_one_line, parts)):
        unique.setdefault(part.casefold(), part)
    return tuple(unique.values())


def _one_line(text: str) -> str:
    return " ".join(_encodable(text).split())


def _spoken(text: str) -> str:
    return strip_thoughts(_encodable(text))


def _encodable(text: str) -> str:
    """Drop halves of surrogate pairs, which JSON can hold and a file cannot."""
    return text.encode("utf-8", "ignore").decode("utf-8")
