"""Parse and format recommendation lists: one `Title (Year)` per line. Parsing is lenient, formatting is strict.

A line that people would read as an item is one: list markers, emphasis, quotes, brackets, links, table rows and remarks are taken
off, and the year may be written in several ways (docs/data.md). Prose is no item. `read` knows the catalog as well, so a line
that is an item of the catalog to the letter is that item, whatever it looks like.
"""

import re
from collections.abc import Container, Iterable
from functools import lru_cache
from typing import NamedTuple


class Item(NamedTuple):
    """A catalog item. `year` is None if the domain has no years, or if a list leaves the year out."""

    title: str
    year: int | None = None

    def __str__(self) -> str:
        return self.title if self.year is None else f"{self.title} ({self.year})"


class Entry(NamedTuple):
    """A line of a list."""

    item: Item | None
    """None: the line is not an item."""
    marker: str
    """Kind of its list marker: "number", "bullet" or "" (none)."""


# Only ASCII white space counts as blank, here and in the policy's token tables. Each character is one byte, so text and
# tokens agree for every byte-level tokenizer.
WHITESPACE = " \t\r\n\f\v"

# ---------------------------------------------------------------------------------------------------------------------
# thoughts
# ---------------------------------------------------------------------------------------------------------------------

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


# ---------------------------------------------------------------------------------------------------------------------
# lists
# ---------------------------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """Return the non-blank lines of a list, without thoughts.

    Only `\\n` ends a line, as in `rl.segment_ranks`: line k is rank k.
    """
    return [line for line in strip_thoughts(text).split("\n") if line.strip(WHITESPACE)]


def parse(text: str, *, year_required: bool = True) -> list[Item]:
    """Return the items of a list in order. Lines that are not items (headings, remarks) are skipped."""
    items = (parse_line(line, year_required=year_required) for line in lines(text))
    return [item for item in items if item is not None]


def read(text: str, known: Container[Item], *, year_required: bool = True) -> list[Item | None]:
    """Return each line of a list as an item. None: the line is not an item.

    Args:
        known: Catalog. A line that is one of its items, to the letter or behind its list marker, is that item.
        year_required: A line without a year is not an item. False for catalogs with items that have no year.
    """
    return [_read(line, known, year_required) for line in lines(text)]


def parse_line(line: str, *, year_required: bool = True) -> Item | None:
    """Return the item on a line, or None if there is none.

    year_required: a line without a year is not an item. False for catalogs without years.
    """
    return parse_entry(line, year_required=year_required).item


def format(items: Iterable[Item]) -> str:
    """Return items as text: one item per line, without a newline at the end."""
    return "\n".join(str(Item(*item)) for item in items)


@lru_cache(maxsize=2**16)
def fold(title: str) -> str:
    """Return a title with case and white space folded, for comparison."""
    return " ".join(title.casefold().split())


def _read(line: str, known: Container[Item], year_required: bool) -> Item | None:
    text = line.strip(WHITESPACE)
    item = _named(text, known, year_required)
    if item is None and (unmarked := _unmarked(text)[1]) != text:
        item = _named(unmarked, known, year_required)
    return item or parse_line(text, year_required=year_required)


def _named(text: str, known: Container[Item], year_required: bool) -> Item | None:
    item = _strict(text)
    if item.title and item in known:
        return item
    item = Item(text)
    return item if not year_required and item in known else None


def title_of(text: str) -> str:
    """Return the title of `Title (Year)`, or any other text as it is."""
    return _strict(text).title or text


def _strict(line: str) -> Item:
    found = _STRICT.fullmatch(line)
    return Item(found[1], int(found[2])) if found else Item("")


_STRICT = re.compile(r"\s*(.*\S)\s*\((\d{4})\)\s*")

# ---------------------------------------------------------------------------------------------------------------------
# list markers
# ---------------------------------------------------------------------------------------------------------------------

_SYMBOLS = (
    "\u2022\u00b7\u2023\u2043\u25aa\u25ab\u25e6\u25cf\u25cb\u25a0\u25a1\u25c6\u25c7\u25ba\u25b6\u25b8\u27a4\u2794\u2192\u21d2"
    "\u2713\u2714\u2705\u2611\u2605\u2606\u2b50\U0001f3ac\U0001f3a5\U0001f37f\U0001f449\ufe0f"
)
_BULLET = re.compile(rf"(?:>|#{{1,6}}\s+|[-*+]\s+|[-\u2013\u2014](?=[^\W\d])|[\u2013\u2014]\s+|[{_SYMBOLS}]|\[[ xX]?\]\s+)\s*")
_OPENING = r"\*{1,3}|_{1,3}|~~|`|[\"\u201c]"
_ALONE = r"(?:1[89]|20)\d\d(?!\d)(?!.*\b(?:1[89]|20)\d\d\b)"
"""A year without a title before it: in `21 - 2008` the number is the title."""
_NAME = "movie|film|title|name|recommendation"
_NUMBER = re.compile(
    rf"""(?P<bold>\*\*|__|\*|_)\#?\d{{1,3}}(?P=bold)(?:\s?[.):]\s*|\s+(?=[^\W\d]|[*_"\[\u201c]))  # **1**. Heat
    |(?P<label>\*\*|__)(?i:{_NAME})(?:(?P=label):|:(?P=label))\s*                    # **Title:**
    |(?P<open>{_OPENING})?(?:
      \#?\d{{1,3}}\s?(?:\\?[.)\]\u3001\uff0e\uff09]){{1,2}}:?(?:\s+|(?=[^\W\d]|[*_~"'`\u201c\u2018\u00ab\u300a\u300c\[<]))  # 1. 1) 1\. 1.Heat
      |\#?\d{{1,2}}(?::\s+|\s?[-\u2013\u2014]\s+(?!\(\d|{_ALONE}))   # 1: 1 - 1-
      |\#\d{{1,3}}\s+                                                               # #1
      |\(\d{{1,2}}\)\s*|\[\d{{1,2}}\](?!\()\s*|[\uff08]\d{{1,2}}[\uff09]\s*                  # (1) [1]
      |[\u2460-\u2473\u2776-\u277f\u2780-\u2793]\s*|(?:\d\ufe0f?\u20e3)+\s*|\U0001f51f\s*  # circled, keycaps
      |(?i:no|nr|number|rank|item|movie|film|title|book|pick|recommendation|suggestion|option|choice)
        \.?\s*\#?\d{{1,3}}\s*(?:[.):\u2013\u2014-]\s+|[.):](?=[^\W\d]))                  # Movie 1:
      |(?i:{_NAME}):\s+                                                             # Title:
      |[a-zA-Z]\)\s+|\([a-zA-Z]\)\s+|[a-z]\.\s+                                      # a) (a) a.
      |(?:[ivx]{{1,5}}[.)]|[IVX]{{1,5}}\)|[IVX]{{2,5}}\.)\s+                           # ii. II. IV)
    )""",
    re.VERBOSE,
)
_UNNUMBERED = re.compile(r"[^\W\d_]\w[\w'\u2019-]*(?: [^:.)\d\u2013\u2014-]{12}|$)")
"""Beginning of a line that plainly has no marker: most lines of a trained policy."""
_CLOSINGS = {"\u201c": "\u201d"}
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\u2060"))


def _unmarked(line: str) -> tuple[str, str]:
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


_DASH = re.compile(r"[-\u2013\u2014]\s+(?=\S)")

# ---------------------------------------------------------------------------------------------------------------------
# titles and years
# ---------------------------------------------------------------------------------------------------------------------

_MARKS = [("**", "**"), ("__", "__"), ("~~", "~~"), *((m, m) for m in "*_`\"'")]
_MARKS += [tuple(pair) for pair in ("\u201c\u201d", "\u2018\u2019", "\u201e\u201c", "\u00ab\u00bb", "\u300a\u300b", "\u300c\u300d", "\uff02\uff02")]
_OPENINGS = {mark[0]: [pair for pair in _MARKS if pair[0][0] == mark[0]] for mark, _ in _MARKS}
_TRAILING = {mark[-1]: [pair for pair in _MARKS if pair[0][-1] == mark[-1]] for mark, _ in _MARKS}
_BRACKETS = {"[": "]", "(": ")", "{": "}", "\uff3b": "\uff3d"}
_LAYERS = 8
_YEAR = re.compile(r"[(\uff08][\s*_]*(\d{4})[\s*_]*[)\uff09]")
_CENTURY = r"(?:1[89]|20)\d\d(?![\d%])"
_OTHER_YEAR = re.compile(  # (1995 film) (film, 1995) (dir. X, 1995) (1999-2003) [1995] {1995}
    rf"[(\uff08\[{{](?:[^()\[\]]{{0,80}}[,;:]\s?|(?:the|film|movie|ca?\.|circa|released|tv series)\s+)?"
    rf"[*_]*(?P<year>{_CENTURY})[*_]*(?:[\s,;:/\u2013\u2014-][^()\[\]]{{0,80}})?[)\uff09\]}}]",
    re.IGNORECASE,
)
_BARE_YEAR = re.compile(  # Heat - 1995, Heat, 1995; at the end or before a remark
    rf"(?:[\u2013\u2014|,;:\t]|(?<=\s)-|-(?=\s)|--)\s*[*_`\"'\u201c(\[]{{0,4}}(?P<year>{_CENTURY})(?![\w.]\w|\w|[-\u2013/]\d)"
    rf"(?P<end>[*_`\"'\u201d)\]}},;.]*\s*$|[*_`\"'\u201d]{{0,3}}(?:\s*(?=[-\u2013\u2014|,;:.(\[\t])|\s+(?=[*_\"\u201c])))"
)
_MONTH = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
_DATE = re.compile(
    rf"(?:^|\W)(?:{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?|(?:^|\s(?:in|on|of|since|from|by|until|early|late|mid)\s){_MONTH})$", re.IGNORECASE
)
_PLAIN = re.compile(r"(([A-Z][\w'-]+)(?: [\w,.'&!?:-]+){0,12})(?<![,:-]) \((\d{4})\)")
"""What a trained policy writes, in a form that no rule below changes."""
_DIGITS = re.compile(r"\d{4}")
_MARKING = frozenset("No Nr Number Rank Item Movie Film Title Name Book Pick Recommendation Suggestion Option Choice".split())
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\((?!\d{4}\))[^()\s]*(?:\([^()]*\)[^()\s]*)?(?:\s\"[^\"]*\")?\)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,80}>")
_FIELD = re.compile(r"[\"'](?:title|name|movie|film|item)[\"']\s*:\s*(?:\"([^\"]+)\"|'([^']+)')", re.IGNORECASE)
_YEAR_FIELD = re.compile(rf"year[\"']\s*:\s*[\"']?({_CENTURY})", re.IGNORECASE)
_PAIR = re.compile(rf"[\[(]\s*(?:\"([^\"]+)\"|'([^']+)')\s*,\s*[\"']?({_CENTURY})[\"']?\s*[\])]")
_CELL_YEAR = re.compile(rf"[*_(]*({_CENTURY})[*_)]*")
_LABEL = re.compile(  # a detail below an item: "Director: Michael Mann"
    r"[*_]*(?:(?:directors?|directed by|genres?|year|released?(?: date| year| in)?|starring|stars|cast|plot|synopsis|rating|runtime"
    r"|description|country|language|imdb|reason|authors?|note|user|system|assistant)[*_]*\s?:|why[^:(\d]{0,24}:)(?![*_]*\s*\()",
    re.IGNORECASE,
)
_YEAR_LABEL = re.compile(r"[*_]*(?:year|premiere|release)d?(?: date| year)?[*_]*", re.IGNORECASE)
_LONGEST = 2000
"""Characters of a line that are read. A longer one has its item in front, if it has one."""


def parse_entry(line: str, *, year_required: bool = True) -> Entry:
    """Return the item on a line, and the kind of its list marker. Arguments as for `parse_line`."""
    plain = _PLAIN.fullmatch(line)
    if plain is not None and plain[2] not in _MARKING and not _is_prose(plain[1], "", loose=False):
        return Entry(Item(plain[1], int(plain[3])), "")
    if year_required and not _DIGITS.search(line):
        return Entry(None, "")
    kind, text = _unmarked(line if len(line) <= _LONGEST else line[:_LONGEST])
    if "|" in text and (row := _row(text)):
        text = row
    elif text[:1] in "{[(" and (item := _json(text)):
        return Entry(item, kind)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "<" in text:
        text = _TAG.sub("", text)
    found = _YEAR.search(text) or _OTHER_YEAR.search(text)
    if found is not None:
        item = _dated(text[: found.start()], found[1], text[found.end() :], bare=not kind)
    elif (bare := _bare_year(text)) is not None:
        item = _dated(text[: bare.start()], bare["year"], bare["end"] + text[bare.end() :], bare=not kind, loose=True)
    else:
        item = None if year_required else _undated(text, bare=not kind)
    if item is not None and _LABEL.match(text):
        item = None
    return Entry(item, kind)


def _bare_year(text: str) -> re.Match[str] | None:
    """Return the first year behind a dash or a comma; of years side by side the last: Fear Street - 1994 - 2021."""
    found = _BARE_YEAR.search(text)
    while found is not None and (following := _BARE_YEAR.match(text, found.end())) is not None:
        found = following
    return found


def _dated(before: str, year: str, behind: str, *, bare: bool, loose: bool = False) -> Item | None:
    """Return the item with a year. bare: without a list marker. loose: the year does not stand in parentheses."""
    if loose and (_DATE.search(before) or _YEAR_LABEL.fullmatch(before.strip())):
        return None
    if bare and _is_prose(before, behind, loose):
        return None
    title = _unwrap(before.rstrip(" \t,:;|\u2013\u2014-"), behind)
    return Item(title, int(year)) if title else None


def _undated(text: str, *, bare: bool) -> Item | None:
    """Return the item of a line without a year."""
    end = text.rstrip("*_ \"\u201d")[-1:]
    if end in ("", ":") or text.startswith("```") or len(text.split()) > _MOST_WORDS and len(_without_remark(text).split()) > _MOST_WORDS:
        return None
    if bare and (_prose_words(text) or _SPOKEN.search(text)) and (end in ".!?" or len(text.split()) > _MOST_WORDS):
        return None
    title = _unwrap(_without_remark(text), "")
    return Item(title) if title and any(map(str.isalnum, title)) else None


_REMARK = re.compile(r"\s+[-\u2013\u2014]+\s+")
_EMPHASISED = re.compile(r"(?P<mark>\*{1,3}|__|[\"\u201c*_])(?P<title>.+?)(?:\*{1,3}|__|[\"\u201d*_])\s*(?:[:\u2013\u2014-]\s.*)?")


def _without_remark(line: str) -> str:
    """Return the title of an entry without a year. A subtitle (Mission: Impossible - Fallout) is short and capitalised."""
    if found := _EMPHASISED.fullmatch(line):
        return found["title"].rstrip(": ")
    title, _, rest = _REMARK.sub("\n", line, count=1).partition("\n")
    if rest and (rest[:1].islower() or len(rest.split()) > 6 or (rest.endswith(".") and len(rest.split()) > 3)):
        return title
    title, _, rest = line.partition(": ")
    return title if rest.endswith(".") and len(rest.split()) > 6 else line


def _unwrap(title: str, behind: str) -> str:
    """Remove quotes and emphasis that enclose the title, or that open before it and close in `behind`, after the year.

    A mark that closes inside the title ("Crocodile" Dundee) or never closes ('Tis Autumn, *batteries not included) is part of
    the title. The number of layers is bounded, so that a line of a million stars costs little time.
    """
    title = title.strip()
    near = ""
    if behind and (found := _NEAR.match(behind)):
        near = found[0]
    for _ in range(_LAYERS):
        shorter, near = _unwrap_once(title, near, behind)
        if shorter is title:
            break
        title = shorter
    return title


def _unwrap_once(title: str, near: str, behind: str) -> tuple[str, str]:
    """Remove one layer. near: the marks directly behind the year that are not yet used."""
    for opening, closing in _OPENINGS.get(title[:1], ()):
        if not title.startswith(opening):
            continue
        if title.endswith(closing) and len(title) > len(opening) + len(closing):
            return title[len(opening) : -len(closing)].strip(" ,"), near
        if len(title) > len(opening) and (closing in near or (len(closing) > 1 and closing in behind)):
            return title[len(opening) :].strip(), near
    for opening, closing in _TRAILING.get(title[-1:], ()) if near else ():
        if title.endswith(opening) and near.startswith(closing) and len(title) > len(opening):  # Heat **(1995)**
            return title[: -len(opening)].rstrip(" ,:;\u2013\u2014-"), near[len(closing) :]
    closing = _BRACKETS.get(title[:1])
    if closing and closing in near and closing not in title:
        return title[1:].strip(), near
    return title, near


_NEAR = re.compile(r"[*_`\"'\u201d\u2019\u201c\u00bb\u300b\u300d\uff02)\]},.;:!?]*")


def _row(text: str) -> str | None:
    """Return the title and year of a table's row as a line. None: not a row, or one without a year in a cell of its own."""
    cells = [cell.strip() for cell in text.strip("| \t").split("|")]
    if len(cells) < 2:
        return None
    if re.fullmatch(r"[#*_]*\d{1,3}[.):*_]*", cells[0]) and not (_CELL_YEAR.fullmatch(cells[1]) and not _CELL_YEAR.fullmatch((cells + [""])[2])):
        cells = cells[1:]  # its number
    years = [found[1] for cell in cells[1:] if (found := _CELL_YEAR.fullmatch(cell))]
    return f"{cells[0]} ({years[0]})" if years and not _YEAR.search(cells[0]) else cells[0] if text[0] == "|" else None


def _json(text: str) -> Item | None:
    """Return the item of a line of JSON, or of a literal in a program. None: it is something else."""
    if found := _FIELD.search(text):
        year = _YEAR_FIELD.search(text)
        item = parse_line(found[1] or found[2], year_required=False)
        return item._replace(year=int(year[1])) if item and year else item
    found = _PAIR.match(text)
    return Item((found[1] or found[2]).strip(), int(found[3])) if found else None


# ---------------------------------------------------------------------------------------------------------------------
# prose
# ---------------------------------------------------------------------------------------------------------------------

_MOST_WORDS = 14
"""Words of the longest title: Don't Be a Menace to South Central While Drinking Your Juice in the Hood."""
_PROSE = frozenset(
    "you your my i we they me them it's that's there's there this those some any is are was were am be been has have had haven't do does"
    " did don't didn't will would can could should might may see seen saw watch watched watching think thought liked loved enjoy enjoyed"
    " hear heard recommend recommended suggest suggested suggestions looking look looks try prefer released came made called about movie"
    " movies film films comedies also really very too just maybe actually probably definitely always never ever yet something anything"
    " another good great new old cool classic classics favorite favourite favorites similar sure yes yeah okay ok well so how what which"
    " here want know mood horror scary funny original sequel remake both even all again".split()
)
"""What prose has and titles do not: these words in lower case are in 1 of 25,000 titles of our samples, and in most utterances."""
_SPOKEN = re.compile(
    r"(?:^|[.!?,]\s)(?:I|We|They|He|She|I['\u2019](?:m|ve|d|ll))\s(?!(?:and|or|of|in|on|to|the|a|at|for|with|vs|from|by)\s)[a-z]"
    r"|[a-z\d]{3}[.!?] +[A-Z]\w* [a-z]|^(?:or|and|but|like|maybe|yes|yeah|ok|i|is)[\s,.]|^(?i:or|also|okay|wow|how about|(?:some|any)thing(?: more)? like)\b(?!:)"
)
"""The beginning of a sentence."""
_EMPHASIS = tuple("*_`\"\u201c[")
_FOLLOWS = re.compile(r"\s+(?!(?:directed|dir|by|starring|with|featuring|from|film|movie)\b)[a-z'\u2019]")


def _is_prose(before: str, behind: str, loose: bool) -> bool:
    """Return whether a line without a list marker is a sentence that mentions an item, or a year."""
    if _FOLLOWS.match(behind):
        return True
    if before[:1] in _EMPHASIS:
        return False
    if _SPOKEN.search(before):
        return True
    end = behind.rstrip("*_ \"'\u201d")
    if end.endswith((":", "?")) or (loose and (end == "." or end[:1] in (",", ";") and len(end) > 1)):
        return True
    spoken = _prose_words(before)
    # A title in sentence case has such a word now and then. One that is all there is on its line has the benefit of the doubt.
    if spoken and (loose or end or spoken > 2 or before.split()[0].strip(",.!").casefold() in _STARTS):
        return True
    if (_YEAR.search(behind) or behind.lstrip()[:1].isalpha()) and _prose_words(behind):
        return True
    return before.count(" ") >= 2 * _MOST_WORDS or (loose and before.count(" ") >= _MOST_WORDS)


_STARTS = frozenset(
    "also and another any anything are because but can cool could did do does great haha has have he hello hey hi how i i'd i'm i've if"
    " in is it it's lol maybe me my nice no not oh ok okay one or she so some something sure thanks that that's then there there's"
    " they this was we well were what would yeah yes you".split()
)
"""First words of sentences."""


def _prose_words(text: str) -> int:
    words = text.replace("\u2019", "'").split()
    return sum(word.rstrip(",.!?") in _PROSE for word in words)
