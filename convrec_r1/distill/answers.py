"""What a teacher wrote -> items, ratings, descriptions. Nothing here raises on any text: what cannot be read is left out."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

from convrec_r1.lists import Item, fold, lines, parse_line

SCORES = range(-2, 3)
"""What a judge may give (design section 8)."""


class Description(TypedDict):
    """What a teacher says of an item; fields of `Metadata`."""

    genres: tuple[str, ...]
    keywords: tuple[str, ...]
    plot: str


@dataclass(frozen=True)
class Ratings:
    """A judge's answer about items 1..count."""

    scores: dict[int, int]
    """Number -> score, of those that could be read."""
    faulty: tuple[int, ...]
    """All other numbers, ascending: not scored, scored with something else than -2..2, or scored differently twice."""


# Of a list's line: heading and quotation signs, emphasis around the number, the number or bullet, the rest.
_NUMBERED = re.compile(
    r"[#>\s]*(?:\*\*|__)?(?:\d{1,3}[.)\u3001]|\(\d{1,2}\))(?:\*\*|__)?(?:\s+|(?=[^\d\s.)]))(?P<rest>.*)"
)
_BULLET = re.compile(r"[#>\s]*[-*+\u2022\u00b7\u2013\u2014]\s+(?P<rest>.*)")
_HEADING = re.compile(r"\s*[#>]+\s*")
_PAIRS = {"**": "**", "__": "__", '"': '"', "\u201c": "\u201d", "*": "*", "_": "_"}

# Years that parse_line does not know: `- 1999` at the end, [1999], (1999 film), (1999-2003), (dir. X, 1999).
_YEAR = r"(?:1[89]|20)\d\d"
_IN_PARENTHESES = re.compile(rf"\((?:[^()]*[,;] ?)?({_YEAR})(?:[ ,;/\u2013\u2014-][^()]*)?\)|\[({_YEAR})\]")
_BEHIND_DASH = re.compile(rf"\s+[-\u2013\u2014]\s+({_YEAR})(?=[\s\"*_.\u201d]*$)")
_PLAIN_YEAR = re.compile(r"\(\d{4}\)")

# Words that open what is no title. Titles open with some of them too (I, Robot; Great Expectations; Hello, Dolly!), so each
# goes on until it is a remark.
_REMARK = re.compile(
    r"(?:(?:sure|certainly|absolutely|definitely|of course|great|okay|ok|enjoy|hello|hi|thanks?|no problem|sorry|yes|no)"
    r"(?: thing| choice| to hear[^!,.:]*)?[!.:]|"
    r"(?:sure|of course|certainly|sorry|okay|yes|no|no problem)(?: thing)?, (?:i|here|how|what|these|some|it|the|but|as|you)\b|"
    r"here (?:are|is|'s|\u2019s)\b|here's\b|"
    r"i (?:hope|can|cannot|can't|would|recommend|suggest|think|apologi[sz]e|understand|do not|am an?|am sorry)\b|"
    r"i(?:'|\u2019)(?:m|d|ll|ve) (?:sorry|an?|unable|glad|happy|doing|recommend|suggest|afraid)\b|"
    r"enjoy (?:the|your|these|watching)\b|happy (?:watching|viewing)\b|let me know\b|feel free\b|hope you\b|please let\b|"
    r"based on (?:your|the|our|this|what)\b|as an ai\b|unfortunately,|you (?:might|may|could) (?:also )?(?:like|enjoy|want)\b|"
    r"these (?:movies|films|are|should|recommendations)\b|(?:other|more|additional|some) (?:recommendations|suggestions)\b|"
    r"would you like\b|do you (?:like|want|prefer|have any)\b|note:|what (?:genre|kind|type|sort) of\b|what genre\b|"
    r"how about\b|(?:user|system|assistant|recommender|human)\s*:)",
    re.IGNORECASE,
)
_MOST_WORDS = 14  # Don't Be a Menace to South Central While Drinking Your Juice in the Hood
_SENTENCE_WORDS = 8  # a longer line that ends as a sentence does is one; Are You There God? It's Me, Margaret. has 7

_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_UNFINISHED_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def recommended(text: str, *, has_yearless: bool = True) -> list[Item]:
    """A teacher's list as items, best first, each once (title folded, year; the first counts).

    Entries are the numbered lines where there are some; else the bulleted ones; else all lines. (Where bulleted or bare lines
    bear more years than numbered ones, those are the list and the numbers are headings.) A line with a year is `Title (1999)`,
    `Title - 1999`, `Title [1999]` or `Title (1999 film)`, with or without marker, emphasis, quotes and a remark behind. A line
    without a year counts unless it reads as a header or a remark, and not at all where `has_yearless` is False. A list inside a
    sentence is not read; nor is what a model thinks aloud before `</think>`.
    """
    numbered: list[str] = []
    bulleted: list[str] = []
    bare: list[str] = []
    for line in map(_collapsed, lines(_spoken(text))):
        if line.startswith("```"):
            continue
        if found := _NUMBERED.fullmatch(line):
            numbered.append(found["rest"])
        elif found := _BULLET.fullmatch(line):
            bulleted.append(found["rest"])
        else:
            bare.append(_HEADING.sub("", line, count=1))
    kinds = [
        [item for line in numbered if (item := _entry(line))],
        [item for line in bulleted if (item := _entry(line))],
        [item for line in bare if (item := _bare_entry(line))],
    ]
    filled = [kind for kind in kinds if kind]
    if not filled:
        return []
    # max keeps the first of equals. Bare lines must outnumber marked ones, or a remark that names a film would count as much.
    chosen = max(filled, key=lambda kind: sum(item.year is not None for item in kind))
    unique: dict[tuple[str, int | None], Item] = {}
    for item in chosen:
        if has_yearless or item.year is not None:
            unique.setdefault((fold(item.title), item.year), item)
    return list(unique.values())


def _entry(line: str) -> Item | None:
    """What stands behind a marker, as an item."""
    line = _with_year(line.strip())
    dated = _PLAIN_YEAR.search(line) is not None
    if not dated:
        line = _without_remark(line)
        if not _may_be_title(line):
            return None
    # The bullet keeps a title that looks like a marker itself (9. 9) from being taken for one.
    item = parse_line(f"- {line}", year_required=False)
    if item is None or not any(map(str.isprintable, item.title)):
        return None
    return Item(" ".join(item.title.split()), item.year)


def _bare_entry(line: str) -> Item | None:
    """The same of a line without a marker, which may be a sentence that mentions a film and its year."""
    found = _PLAIN_YEAR.search(_with_year(line))
    if found:
        line = _with_year(line)
        before, behind = line[: found.start()], line[found.end() :]
        sentence = re.match(r"\s+\w", behind) is not None or behind.rstrip().endswith((":", "?"))
        if sentence or len(before.split()) > _MOST_WORDS or _REMARK.match(line):
            return None
    return _entry(line)


def _with_year(line: str) -> str:
    """A year in any of the other forms, rewritten as (1999)."""
    if _PLAIN_YEAR.search(line):
        return line
    if found := _IN_PARENTHESES.search(line):
        return f"{line[: found.start()]}({found[1] or found[2]}){line[found.end() :]}"
    if found := _BEHIND_DASH.search(line):
        return f"{line[: found.start()]} ({found[1]}){line[found.end() :]}"
    return line


def _without_remark(line: str) -> str:
    """The title of a yearless entry. What is emphasised or quoted at the start is the title, if the line goes on behind a
    colon or dash. Else a remark is told from a subtitle (Mission: Impossible - Fallout) by its length or lower case."""
    for opening, closing in _PAIRS.items():
        if line.startswith(opening):
            end = line.find(closing, len(opening))
            if end > len(opening) and re.match(r"\s*(?:[:\u2013\u2014-]\s|$)", line[end + len(closing) :]):
                return line[len(opening) : end].rstrip(": ")
            break
    title, dash, rest = _cut(line, r"\s+[-\u2013\u2014]\s+")
    if dash and (rest[:1].islower() or len(rest.split()) > 6 or (rest.endswith(".") and len(rest.split()) > 3)):
        return title
    title, colon, rest = _cut(line, r":\s+")
    if colon and rest.endswith(".") and len(rest.split()) > 6:
        return title
    return line


def _cut(line: str, separator: str) -> tuple[str, str, str]:
    found = re.search(separator, line)
    return (line[: found.start()], found[0], line[found.end() :]) if found else (line, "", "")


def _may_be_title(line: str) -> bool:
    words = len(line.split())
    end = line.rstrip("*_ \t")[-1:]
    return not (
        end in ("", ":") or words > _MOST_WORDS or (words > _SENTENCE_WORDS and end in ".!?") or _REMARK.match(line)
    )


# -- ratings ---------------------------------------------------------------------------------------------------------------

_SIGN = "[+\\-\u2212\u2013]?"
# `3: 2`, `3 = 2`, `[3]: 2`, `#3: 2`, `"3": 2,`, `Item 3: 2`
_COLON = re.compile(
    rf'(?:item |no\. ?|#)?[\["]?([0-9]{{1,6}})[\]"]?\s*[:=]\s*"?({_SIGN}[0-9][^\s,;()\[\]"]*)"?(.*)', re.I
)
# `3. 2`, `3) +2`, `(3) 2`; not `3.2`
_MARKER = re.compile(
    rf"(?:([0-9]{{1,6}})(?:\.(?=[\s+\-\u2212])|\))|\(([0-9]{{1,6}})\))\s*({_SIGN}[0-9][^\s,;()\[\]]*)(.*)"
)
# `3. Title (1999): 2`
_TITLED = re.compile(rf"([0-9]{{1,6}})[.):]\s+.*\S\s*[:=]\s*({_SIGN}[0-9]+(?:\.[0-9]+)?)\s*\.?")
_WHOLE = re.compile(rf"({_SIGN})([0-9]{{1,4}})(?:\.0+)?\.?")
_TAIL = re.compile(r"\s*(?:[.,;]?|[,;(\[#\u2013\u2014-].*)")  # nothing, or a remark that begins as one
_NUMBER_IN_REMARK = re.compile(r"(?<![0-9])(?!(?:1[89]|20)[0-9]{2}(?![0-9]))[0-9]+")  # any but a year
_NEXT_PAIR = re.compile(r"[,;]\s+(?=[0-9]{1,6}\s*:)")


def ratings(text: str, count: int) -> Ratings:
    """A judge's answer, one line an item, `NUMBER: SCORE` with whole scores from -2 to 2.

    Rather missing than wrong, as what is missing is asked for again. Read are `3: -1`, `3 = -1`, `3. -1`, `3) +1`, `(3) 1`,
    `3. Title (1999): 1`, each with a bullet, emphasis or a remark behind `(`, `,` or a dash; several to a line as `1: 2, 2: 0`;
    and a JSON object {"3": -1, ...} that is the whole answer or fenced, which then alone counts. `3 - 1` may mean two things
    and `3 1`, `3.1` are no ratings: not read. A number outside 1..count is ignored. Scores that are out of range or fractional,
    or that differ for one number, make it faulty; so does a number without any.
    """
    text = _spoken(text)
    given = _scored_json(text) or list(_scored_lines(text))
    scores: dict[int, int | None] = {}
    for number, score in given:
        if 1 <= number <= count:
            scores[number] = score if scores.get(number, score) == score else None
    read = {number: score for number, score in sorted(scores.items()) if score is not None}
    return Ratings(read, tuple(number for number in range(1, count + 1) if number not in read))


def _scored_lines(text: str) -> Iterator[tuple[int, int | None]]:
    """(number, score), the score None where it is none that may be given; lines that hold no score are passed over."""
    for line in map(_collapsed, lines(text)):
        line = re.sub(r"^[-*\u2022>]\s+", "", line).replace("*", "").replace("`", "").strip("_ \t{}")
        for part in _NEXT_PAIR.split(line):
            if found := _COLON.fullmatch(part):
                yield int(found[1]), _score(found[2], found[3])
            elif (found := _MARKER.fullmatch(part)) and _TAIL.fullmatch(found[4]) and not re.search("[0-9]", found[4]):
                yield int(found[1] or found[2]), _score(found[3])
            elif found := _TITLED.fullmatch(part):
                yield int(found[1]), _score(found[2])


def _score(written: str, behind: str = "") -> int | None:
    found = _WHOLE.fullmatch(written)
    if not found or not _TAIL.fullmatch(behind) or _NUMBER_IN_REMARK.search(behind):
        return None
    score = int(found[2]) * (1 if found[1] in ("", "+") else -1)
    return score if score in SCORES else None


def _scored_json(text: str) -> list[tuple[int, int | None]]:
    """The pairs of JSON objects, in which a number may stand twice."""
    found: list[tuple[int, int | None]] = []
    for part in [text, *(match[1] for match in _FENCE.finditer(text))]:
        pairs: list[tuple[str, Any]] = []
        try:
            # Called for inner objects first, so that {"ratings": {...}} is read as its inside.
            json.loads(part, object_pairs_hook=pairs.extend)
        except (ValueError, RecursionError):
            continue
        for key, value in pairs:
            if re.fullmatch("[0-9]{1,6}", key.strip()):
                found.append((int(key), _json_score(value)))
    return found


def _json_score(value: Any) -> int | None:
    if isinstance(value, str):
        return _score(value.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in SCORES:
        return None
    return int(value)


# -- descriptions ----------------------------------------------------------------------------------------------------------


_MOST_BROKEN = 10_000
"""Braces that open nothing readable, after which an answer is noise: each costs up to the depth of what it opens."""


def descriptions(text: str, count: int) -> dict[int, Description]:
    """Number -> what the teacher says of that item.

    Read are JSON objects {"item": 3, "genres": [...], "keywords": [...], "plot": "..."}. They may stand one a line, over
    several lines, in an array, inside another object or fenced; one that is broken or cut off costs itself only. Genres and
    keywords may be strings with commas. An object without a number from 1 to count, with a field of another type, or with
    nothing in its fields is left out; of two for one item the first counts.
    """
    found: dict[int, Description] = {}
    for fields in _objects(_spoken(text)):
        number = fields.get("item")
        if isinstance(number, str) and re.fullmatch("[0-9]{1,6}", number.strip()):
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= count:
            continue
        description = _description(fields)
        if description is not None:
            found.setdefault(number, description)
    return found


def _description(fields: dict[str, Any]) -> Description | None:
    genres, keywords = _strings(fields.get("genres")), _strings(fields.get("keywords"))
    plot = fields.get("plot")
    if genres is None or keywords is None or not isinstance(plot, str | None):
        return None
    plot = " ".join(_encodable(plot or "").split())
    return Description(genres=genres, keywords=keywords, plot=plot) if genres or keywords or plot else None


def _strings(value: Any) -> tuple[str, ...] | None:
    """Each once, without blanks; None for what is neither strings nor null."""
    parts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return None
    unique = {
        part.casefold(): part for part in reversed([" ".join(_encodable(part).split()) for part in parts]) if part
    }
    return tuple(reversed(unique.values()))


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that can be read, wherever it begins; those inside another follow it."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    broken = 0
    while at >= 0 and broken < _MOST_BROKEN:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
            broken += 1
        else:
            waiting = [value]
            while waiting:
                value = waiting.pop()
                if isinstance(value, dict):
                    yield value
                    value = list(value.values())
                if isinstance(value, list):
                    waiting.extend(reversed(value))
        at = text.find("{", end)


def _spoken(text: str) -> str:
    """The answer without what the model thought aloud; nothing, where it was cut off while thinking."""
    text = _THOUGHT.sub("", _encodable(text), count=1)
    return "" if _UNFINISHED_THOUGHT.match(text) else text


def _collapsed(line: str) -> str:
    """Without white space but single blanks: patterns that look for it would try every stretch of a long one."""
    return " ".join(line.split())


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold and no file can."""
    return text.encode("utf-8", "ignore").decode("utf-8")
