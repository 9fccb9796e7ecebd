"""Recommendation text <-> items: read leniently, written strictly."""

import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

import convrec_r1
from convrec_r1 import lists
from convrec_r1.data import Catalog
from convrec_r1.lists import Item, fold, parse, parse_line

SHARED = Path(__file__).parents[2] / "shared"
FILMS = Path(convrec_r1.__file__).parent / "data" / "movieland" / "films.csv"

# ---------------------------------------------------------------------------------------------------------------------
# one line
# ---------------------------------------------------------------------------------------------------------------------

HEAT = Item("Heat", 1995)

LINES_THAT_SAY_HEAT = [
    "Heat (1995)",
    "  Heat (1995)  ",
    "\tHeat  (1995)\r",
    "Heat(1995)",
    # numbers and bullets
    "1. Heat (1995)",
    "12. Heat (1995)",
    "3) Heat (1995)",
    "(3) Heat (1995)",
    "  7.   Heat (1995)",
    "- Heat (1995)",
    "* Heat (1995)",
    "\u2022 Heat (1995)",
    "\u2013 Heat (1995)",
    # quotes and emphasis, around the title or the entry
    '"Heat" (1995)',
    '"Heat (1995)"',
    "'Heat' (1995)",
    "'Heat (1995)'",
    "\u201cHeat\u201d (1995)",
    "\u201cHeat (1995)\u201d",
    "`Heat (1995)`",
    "**Heat** (1995)",
    "**Heat (1995)**",
    "*Heat* (1995)",
    "*Heat (1995)*",
    "_Heat_ (1995)",
    "__Heat__ (1995)",
    '**"Heat"** (1995)',
    '"**Heat**" (1995)',
    '**"Heat (1995)"**',
    "4) **Heat (1995)**",
    '* "Heat" (1995)',
    # remarks
    "Heat (1995) - a great pick",
    "Heat (1995): Pacino and De Niro (at last) in one scene.",
    "Heat (1995), Ronin (1998)",
    "1. **Heat** (1995) \u2014 *directed by* Michael Mann",
]


@pytest.mark.parametrize("line", LINES_THAT_SAY_HEAT)
def test_markers_emphasis_quotes_and_remarks_are_taken_off(line):
    assert parse_line(line) == HEAT
    assert parse(line) == [HEAT]


TITLES_AS_THEY_ARE = [
    Item("2001: A Space Odyssey", 1968),
    Item("1917", 2019),
    Item("2012", 2009),
    Item("(500) Days of Summer", 2009),
    Item("300: Rise of an Empire", 2014),
    Item("300", 2006),
    Item("12 Angry Men", 1957),
    Item("3:10 to Yuma", 2007),
    Item("10,000 BC", 2008),
    Item("8\u00bd", 1963),
    Item("9 1/2 Weeks", 1986),
    Item("'Tis Autumn: The Search for Jackie Paris", 2006),
    Item("'71", 2014),
    Item("Don't Look Now", 1973),
    Item("M*A*S*H", 1970),
    Item("*batteries not included", 1987),
    Item('"Crocodile" Dundee', 1986),
    Item('Dr. "T" and the Women', 2000),
    Item("Good Night, and Good Luck.", 2005),
    Item("...And Justice for All", 1979),
    Item("#Alive", 2020),
    Item("$9.99", 2008),
    Item("tick, tick... BOOM!", 2021),
    Item("Blade Runner (Final Cut)", 1982),
    Item("Birdman or (The Unexpected Virtue of Ignorance)", 2014),
    Item("Mission: Impossible - Fallout", 2018),
    Item("K-19: The Widowmaker", 2002),
    Item("Wall\u00b7E", 2008),
    Item("Am\u00e9lie", 2001),
    Item("\u5343\u3068\u5343\u5c0b\u306e\u795e\u96a0\u3057", 2001),
    Item("\u041b\u0435\u0432\u0438\u0430\u0444\u0430\u043d", 2014),
    Item("\u00a1Three Amigos!", 1986),
    Item("[REC]", 2007),
    Item("X", 2022),
]


@pytest.mark.parametrize("item", TITLES_AS_THEY_ARE, ids=str)
def test_what_looks_like_a_marker_or_a_mark_stays_in_the_title(item):
    assert parse_line(str(item)) == item


@pytest.mark.parametrize("item", TITLES_AS_THEY_ARE, ids=str)
def test_such_titles_behind_a_list_number(item):
    assert parse_line(f"4. {item}") == item


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   ",
        "Heat",
        "Here are some recommendations:",
        "Heat 1995",
        "Heat (95)",
        "Heat (19955)",
        "Heat (year unknown)",
        "Heat (1995",
        "(1995)",
        "1. (1995)",
        "- ",
        "**",
        "*" * 7,
        '""',
    ],
)
def test_a_line_without_title_or_year_is_no_item(line):
    assert parse_line(line) is None
    assert parse(line) == []


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("Dune", Item("Dune")),
        ("1. Dune", Item("Dune")),
        ("- **Dune**", Item("Dune")),
        ('"Dune"', Item("Dune")),
        ("Dune (1984)", Item("Dune", 1984)),
        ("  ", None),
        ("", None),
    ],
)
def test_a_year_may_be_missing_where_it_is_not_required(line, item):
    assert parse_line(line, year_required=False) == item
    assert parse(line, year_required=False) == ([] if item is None else [item])


# ---------------------------------------------------------------------------------------------------------------------
# whole lists
# ---------------------------------------------------------------------------------------------------------------------


def test_lines_that_are_no_items_are_dropped():
    text = "Here are some films:\n\n1. Heat (1995)\n2. Ronin\n   \n3. **Dune (2021)** - sand\n\nEnjoy!"
    assert parse(text) == [HEAT, Item("Dune", 2021)]
    assert parse("") == []
    assert parse("\n\n  \n") == []


def test_windows_line_ends():
    assert parse("Heat (1995)\r\n\r\nRonin (1998)\r\n") == [HEAT, Item("Ronin", 1998)]


@pytest.mark.parametrize("other", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_a_newline_ends_a_line(other):
    """`str.splitlines` knows many more, and would part the lines from the ranks of the tokens."""
    text = f"Heat (1995){other}Ronin (1998)\nDune (2021)"
    assert lists.lines(text) == [f"Heat (1995){other}Ronin (1998)", "Dune (2021)"]
    assert parse(text) == [HEAT, Item("Dune", 2021)]


def test_lines_keep_their_text_and_leave_out_the_blank():
    assert lists.lines("\n a \n \t\r\v\f \n\nb\r\n") == [" a ", "b\r"]
    assert lists.lines("") == []


def test_format_is_one_item_a_line_and_no_newline_at_the_end():
    assert lists.format([HEAT, Item("Dune"), ("Ronin", 1998)]) == "Heat (1995)\nDune\nRonin (1998)"
    assert lists.format([]) == ""
    assert lists.format(iter([HEAT])) == "Heat (1995)"


def test_fold_evens_out_case_and_white_space():
    assert fold("  The   BIG\tLebowski ") == fold("the big lebowski") == "the big lebowski"
    assert fold("STRASSE") == fold("stra\u00dfe")
    assert fold("") == ""


# A sane title starts and ends with a letter and has no year in parentheses; between them stands anything in a line.
_inside = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), max_size=20)
_letter = st.characters(categories=("L",))
titles = st.builds(lambda a, b, c: a + b + c, _letter, _inside, _letter).filter(
    lambda t: not re.search(r"\(\d{4}\)", t)
)
items = st.builds(Item, titles, st.integers(1000, 9999))


@settings(max_examples=examples(200))
@given(st.lists(items, max_size=6))
def test_a_formatted_list_parses_to_itself(expected):
    assert parse(lists.format(expected)) == expected


@settings(max_examples=examples(100))
@given(st.lists(items, min_size=1, max_size=6), st.data())
def test_a_dressed_list_parses_to_its_items(expected, data):
    """Whatever a model puts around its entries: numbers, bullets, bold, remarks, blank lines, carriage returns."""
    text = ""
    for number, item in enumerate(expected, start=1):
        before = data.draw(st.sampled_from(["", f"{number}. ", f"{number}) ", "- ", "* "]))
        dress = data.draw(st.sampled_from(["{}", "**{}**", '"{}"']))
        behind = data.draw(st.sampled_from(["", " - a classic", ": see it!", "  "]))
        text += before + dress.format(item) + behind + data.draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
    assert parse(text) == expected


@settings(max_examples=examples(200))
@given(st.text(st.sampled_from(list("aB1(9)5*_`'\"\u201c-. \t\r\n\u00a0\u2028")), max_size=40), st.booleans())
def test_any_text_parses_to_at_most_one_item_a_line(text, year_required):
    found = parse(text, year_required=year_required)
    assert len(found) <= len(lists.lines(text))
    for item in found:
        assert item.title
        assert item.title == item.title.strip()
        assert "\n" not in item.title
        assert item.year is not None or not year_required


def test_every_embedded_film_survives_format_and_parse():
    films = list(Catalog.load(FILMS))
    assert parse(lists.format(films)) == films


def test_every_film_of_a_real_catalog_survives_format_and_parse():
    path = SHARED / "data" / "reddit_v2" / "gt_catalog.pkl"
    if not path.exists():
        pytest.skip(f"no sample of Reddit-v2 at {path}")
    films = [item for item in Catalog.load(path) if item.year is not None and item.year >= 1000]
    assert len(films) > 7000
    assert parse(lists.format(films)) == films
    assert parse("\n".join(f"{k % 30 + 1}. {item}" for k, item in enumerate(films))) == films


# ---------------------------------------------------------------------------------------------------------------------
# no line may hang a run
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def within(seconds: float):
    """Fail, rather than hang, where the body takes longer (the regex engine lets signals through)."""

    def stop(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    started = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < seconds


MB = 1_000_000
LONG_LINES = {
    "letters": "a" * MB,
    "digits": "1" * MB,
    "spaces inside": "a" + " " * MB + "b",
    "tabs inside": "a" + "\t\r" * (MB // 2) + "b",
    "spaces behind": "a" + " " * MB,
    "open parentheses": "(" * MB,
    "spaced parentheses": " (" * (MB // 2),
    "almost years": "(199 " * (MB // 5),
    "numbers": "1. " * (MB // 3),
    "bullets": "- " * (MB // 2),
    "stars": "*" * MB + "a",
    "stars around": "*" * (MB // 2) + "a" + "*" * (MB // 2),
    "quotes": '"' * MB + "a",
    "mixed marks": "*_`\"'" * (MB // 5) + "a",
    "spaced marks": "* " * (MB // 2) + "a",
}


@pytest.mark.parametrize("year", ["", " (1999)"])
@pytest.mark.parametrize("line", LONG_LINES.values(), ids=LONG_LINES.keys())
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM to stop a parser that hangs")
def test_a_line_of_a_megabyte_takes_less_than_a_second(line, year):
    with within(1.0):
        parse(line + year)
        parse(line + year, year_required=False)


def test_a_megabyte_of_lines_takes_less_than_a_few_seconds():
    count = MB // 40
    with within(3.0):
        assert len(parse("\n".join(f'{k % 100}. **"The Film {k}"** (1999) - fine' for k in range(count)))) == count
