"""Lines as people and models write them: every list marker, emphasis, form of the year and remark, times every title."""

import csv
import functools
import itertools
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import SHARED, examples

from convrec_r1.data import Catalog
from convrec_r1.data.movieland.films import load_films
from convrec_r1.lists import Item, parse, parse_entry, parse_line, read, strip_thoughts
from convrec_r1.matching import unnameable

DATA = SHARED / "data"
HEAT = Item("Heat", 1995)

NUMBERS = [
    "1. ", "12. ", "01. ", "1) ", "1.) ", "(1) ", "[1] ", "1: ", "1 - ", "1 \u2013 ", "1- ", "1\\. ", "1.", "1)", "#1 ", "#1: ",
    "#1. ", "No. 1: ", "Movie 1: ", "Recommendation 1 - ", "Title: ", "a) ", "(a) ", "b. ", "ii. ", "IV. ", "\u2460 ",
    "1\ufe0f\u20e3 ", "1\u3001", "**1.** ", "**1**. ", "**1)** ", "__1.__ ", "*1.* ", "### 1. ", "> 1. ", "- 1. ",
    "**Title:** ",
]  # fmt: skip
BULLETS = [
    "- ", "* ", "+ ", "\u2022 ", "\u2022", "\u00b7 ", "\u2013 ", "\u2014 ", "\u25aa ", "\u25cf ", "\u2192 ", "\u2705 ",
    "\U0001f3ac ",
    "- [ ] ", "- [x] ", "> - ", "  - ", "\t* ",
]  # fmt: skip
BARE = ["", "  ", "# ", "### ", "> "]
DRESSES = [  # emphasis, quotes and links around the title or the entry, times the forms of the year
    "{t} ({y})", "{t}  ({y})", "{t}({y})", "**{t}** ({y})", "**{t} ({y})**", "*{t}* ({y})", "_{t}_ ({y})", "***{t}*** ({y})",
    "~~{t}~~ ({y})", '"{t}" ({y})', '"{t} ({y})"', "\u201c{t}\u201d ({y})", "`{t}` ({y})", "\u00ab{t}\u00bb ({y})",
    '**"{t}"** ({y})',
    "[{t}](https://example.org/x_(film)) ({y})", "[{t} ({y})](https://example.org)", "**[{t}](https://example.org)** ({y})",
    "[{t} ({y})]", "<b>{t}</b> ({y})", "<li>{t} ({y})</li>", "{t} - {y}", "{t} \u2013 {y}", "{t} \u2014 {y}", "{t}, {y}",
    "{t} | {y}",
    "**{t}** - {y}", "**{t} - {y}**", "*{t}*, {y}", '"{t}", {y}', "{t} **({y})**", "{t} (**{y}**)", "*{t}* *({y})*",
    "{t} [{y}]",
    "**{t}** [{y}]", "{t} ({y} film)", "{t} (film, {y})", "{t} (dir. Michael Mann, {y})", "{t} ({y}, USA)",
    "{t} ({y}\u20132005)",
    "{t} - ({y})", "{t}, ({y})", "{t}: ({y})", "{t} \uff08{y}\uff09", "{t} {{{y}}}",
]  # fmt: skip
REMARKS = [
    "", "  ", " - a heist film", ": a heist film you will love.", " \u2014 Pacino and De Niro", ". A classic!",
    " (dir. Michael Mann)",
    " **must see**", ", directed by Michael Mann",
]  # fmt: skip


@pytest.mark.parametrize("marker", NUMBERS + BULLETS + BARE)
def test_every_marker_with_every_dress_and_remark(marker):
    for dress, remark in itertools.product(DRESSES, REMARKS):
        if remark.startswith(",") and marker in BARE:
            continue  # "Heat, 1995, directed by ..." may be a sentence
        line = marker + dress.format(t="Heat", y=1995) + remark
        assert parse_line(line) == HEAT, line


def test_markers_have_kinds():
    assert {parse_entry(f"{marker}Heat (1995)").marker for marker in NUMBERS} == {"number"}
    assert {parse_entry(f"{marker}Heat (1995)").marker for marker in BULLETS} == {"bullet"}
    assert {parse_entry(f"{marker}Heat (1995)").marker for marker in BARE} == {""}


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("3. Blade Runner 2049 (2017)", Item("Blade Runner 2049", 2017)),
        ("2001: A Space Odyssey - 1968", Item("2001: A Space Odyssey", 1968)),
        ("1. 2001: A Space Odyssey, 1968", Item("2001: A Space Odyssey", 1968)),
        ("1917 (2019)", Item("1917", 2019)),
        ("1. 1917 - 2019", Item("1917", 2019)),
        ("1 - 1917 [2019]", Item("1917", 2019)),
        ("21 - 2008 - blackjack", Item("21", 2008)),
        ("Wonder Woman 1984, 2020", Item("Wonder Woman 1984", 2020)),
        ("- Fear Street: Part One - 1994 - 2021 - a slasher", Item("Fear Street: Part One - 1994", 2021)),
        ("Argentina, 1985, 2022", Item("Argentina, 1985", 2022)),
        ("1. **300** (2006)", Item("300", 2006)),
        ("4. 24: Redemption (2008)", Item("24: Redemption", 2008)),
        ("- [REC] (2007)", Item("[REC]", 2007)),
        ("'71 - 2014", Item("'71", 2014)),
        ("(500) Days of Summer - 2009", Item("(500) Days of Summer", 2009)),
        ("1. Mission: Impossible - Fallout - 2018", Item("Mission: Impossible - Fallout", 2018)),
        # rows of tables
        ("| 1 | Heat | 1995 | crime |", HEAT),
        ("| **Heat** | 1995 |", HEAT),
        ("| Heat (1995) | crime |", HEAT),
        ("| 1. | Heat | Michael Mann | 1995 |", HEAT),
        ("| 300 | 2006 | war |", Item("300", 2006)),
        ("1. Heat | 1995 | crime", HEAT),
        # JSON and literals
        ('{"title": "Heat", "year": 1995},', HEAT),
        ("{'name': 'Heat', 'year': '1995'}", HEAT),
        ('"Heat (1995)",', HEAT),
        ('["Heat", 1995],', HEAT),
        ("('Heat', 1995),", HEAT),
        ('1. {"title": "Heat (1995)"}', HEAT),
    ],
)
def test_a_year_that_belongs_to_the_title_and_rows_and_json(line, item):
    assert parse_line(line) == item


@pytest.mark.parametrize(
    "line",
    [
        "Here are ten films from the 1990s:", "Here are ten films from 1995:", "Heat came out in 1995.",
        "It was released in 1995",
        "I saw it in December, 1995.", "My favourite is Heat, 1995.", "It came out on June 5, 1998",
        "Have you seen Heat (1995)?",
        "I loved Heat (1995) and Ronin (1998)!", "Heat (1995) was great", "You should really see Heat (1995)",
        "How about Heat (1995)", "I think I saw it (in 1995)", "| Rank | Title | Year |", "|---|---|---|", "---",
        "```json", "[", "{",
        "- Year: 1995", "   - Released: 1995", "   - Director: Michael Mann (born 1943)", "**Year:** 1995",
        "## Films of the 1990s",
        "Sure! Here are some films released between 1990 and 1995:", "Let me know if you want more!", "Heat 1995", "1. 1995",
    ],
)  # fmt: skip
def test_prose_is_no_item(line):
    assert parse_line(line) is None


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("Heat", "Heat"), ("1. Heat", "Heat"), ("- **Heat**", "Heat"), ("1. **Heat** - two great actors", "Heat"),
        ("1. Heat - a tense heist film with two great actors", "Heat"),
        ("2. Mission: Impossible - Fallout", "Mission: Impossible - Fallout"),
        ("3. What's Up, Doc?", "What's Up, Doc?"), ("Adaptation.", "Adaptation."), ("Blade Runner 2049", "Blade Runner 2049"),
        ("Here are ten films for you:", None), ("What genre are you in the mood for?", None),
        ("I'm sorry, I can't recommend films.", None),
        ("User: I like action and adventure movies", None), ("Director: Michael Mann", None),
        ("Enjoy your movie night, and tell me how you liked it!", None),
    ],
)  # fmt: skip
def test_lines_of_lists_without_years(line, title):
    found = parse_line(line, year_required=False)
    assert (found and found.title) == title


def test_the_catalog_decides_what_is_read():
    """A line that is an item to the letter is that item, whatever it looks like."""
    catalog = Catalog(
        [Item("24: Redemption", 2008), Item("what I really love", 2015), Item("Fear Street - 1994", 2021)]
    )
    text = "24: Redemption (2008)\n1. What I Really Love (2015)\nwhat I really love (2015)\nI really love you (2015)"
    assert read(text, catalog) == [
        Item("24: Redemption", 2008),
        Item("What I Really Love", 2015),
        Item("what I really love", 2015),
        None,
    ]
    yearless = Catalog([Item("Chess: how to win every game of your life, and why."), Item("Fear Street - 1994")])
    text = "1. Chess: how to win every game of your life, and why.\nFear Street - 1994"
    assert read(text, yearless, year_required=False) == list(yearless)


# ---------------------------------------------------------------------------------------------------------------------
# thoughts
# ---------------------------------------------------------------------------------------------------------------------

THOUGHTS = [
    "<think>\nmaybe Ronin (1998)\n</think>\n", "<think></think>", "<thinking>1. Ronin (1998)</thinking>\n",
    "<THINK>\nhm\n</THINK>\n\n",
    "<|begin_of_thought|>\nRonin (1998)\n<|end_of_thought|>\n", "[THINK]Ronin (1998)\n[/THINK]",
    "<seed:think>x\ny</seed:think>",
    "\u25c1think\u25b7Ronin (1998)\u25c1/think\u25b7\n", "so, Ronin (1998)\n</think>\n\n",
    "<reasoning>Ronin (1998)\n</reasoning>\n",
    "<|channel|>analysis<|message|>Ronin (1998)\n<|end|><|start|>assistant<|channel|>final<|message|>",
]  # fmt: skip


@pytest.mark.parametrize("thought", THOUGHTS)
def test_thoughts_are_no_part_of_a_list(thought):
    assert parse(f"{thought}Heat (1995)") == [HEAT]
    assert strip_thoughts(f"{thought}Heat (1995)").strip() == "Heat (1995)"


def test_thoughts_that_never_end_take_the_rest_and_other_text_stays():
    assert strip_thoughts("<think>\nHeat (1995)\nRonin (1998)") == ""
    assert strip_thoughts("Heat (1995)\n<think>\nRonin (1998)") == "Heat (1995)\n"
    assert strip_thoughts("a<think>b</think>c<think>d</think>e") == "ace"
    for text in ("", "I think (1999)", "<thin>x</thin>", "a < b > c", "Heat (1995)"):
        assert strip_thoughts(text) == text


# ---------------------------------------------------------------------------------------------------------------------
# real titles, real prose
# ---------------------------------------------------------------------------------------------------------------------


def movieland() -> list[Item]:
    return [film.item for film in load_films()]


def reddit() -> list[Item]:
    return list(Catalog.load(DATA / "reddit_v2" / "gt_catalog.pkl"))


def redial() -> list[Item]:
    with (DATA / "redial" / "movies.jsonl").open(encoding="utf-8") as file:
        found = (re.fullmatch(r"(.*\S)\s*\((\d{4})\)\s*", str(json.loads(line)["name"])) for line in file)
        return [Item(" ".join(match[1].split()), int(match[2])) for match in found if match]


def inspired() -> list[Item]:
    """Names of entities of DBpedia. The year is in few of them."""
    folder = DATA / "cikm23" / "inspired"
    wanted = set(json.loads((folder / "item_ids.json").read_text(encoding="utf-8")))
    names = json.loads((folder / "entity2id.json").read_text(encoding="utf-8"))
    titles = [
        re.sub(r"_\([^()]*\)$", "", name.strip("<>").rpartition("/resource/")[2])
        for name, at in names.items()
        if at in wanted
    ]
    return [Item(title.replace("_", " "), 1999) for title in titles if title]


@functools.cache
def titles_of(source) -> list[Item]:
    if source is not movieland and not DATA.exists():
        pytest.skip(f"no samples of datasets at {DATA}")
    return list(dict.fromkeys(item for item in source() if item.year and item.year >= 1000))


SOURCES = [movieland, reddit, redial, inspired]


@pytest.mark.parametrize("source", SOURCES)
def test_every_real_title_is_read_as_itself(source):
    films = titles_of(source)
    assert len(films) > 300
    assert parse("\n".join(map(str, films))) == films
    for form in ("7. {}", "- {}", "**{}**", "3) **{}** - a film that you may like", "\u2022 {}"):
        dressed = [film for film in films if "*" not in film.title or "*" not in form]
        assert [film for film in dressed if parse_line(form.format(film)) != film] == []
    assert unnameable(Catalog(films)) == []


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=examples(150), deadline=None)
@given(st.data())
def test_a_title_in_any_supported_form_is_read_as_itself(source, data):
    films = titles_of(source)
    item = data.draw(st.sampled_from(films))
    marker = data.draw(st.sampled_from(NUMBERS + BULLETS + BARE))
    dress, remark = data.draw(st.sampled_from(DRESSES)), data.draw(st.sampled_from(REMARKS))
    # Ambiguous are 1.300 (2006), *61* (2001)*, a sentence's "Heat, 1995, directed by", and May, 1999.
    assume(marker[-1:].strip() != marker[-1:] or item.title[0].isalpha())
    assume(not re.search(r"[*_\"`~\[\]|<>{}]", item.title) or dress == "{t} ({y})")
    assume(marker not in BARE or not remark.startswith(","))
    assume(dress not in ("{t}, {y}", "*{t}*, {y}") or item.title not in ("May", "October", "November", "October 1"))
    line = marker + dress.format(t=item.title, y=item.year) + remark
    assert parse_line(line) == item, line


def utterances() -> Iterator[str]:
    """What people wrote in conversations about films, with the titles in place of ReDial's numbers."""
    with (DATA / "redial" / "dialogues.jsonl").open(encoding="utf-8") as file:
        for line in file:
            dialogue = json.loads(line)
            named = dialogue["movieMentions"] or {}
            for message in dialogue["messages"]:
                yield re.sub(
                    r"@(\d+)", lambda found, named=named: str(named.get(found[1]) or found[0]), message["text"]
                )
    with (DATA / "inspired" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        yield from (row["text"] for row in csv.DictReader(file, delimiter="\t"))
    for split in ("train", "validation", "test"):
        with (DATA / "reddit_v2" / "jsonl" / f"{split}.jsonl").open(encoding="utf-8") as file:
            yield from (message["content"] for line in file for message in json.loads(line)["prompt"])


@pytest.mark.skipif(not DATA.exists(), reason=f"no conversations at {DATA}")
def test_no_line_of_real_prose_becomes_an_item():
    prose = sorted({line.strip() for text in utterances() for line in text.split("\n") if line.strip()})
    assert len(prose) > 10_000
    undated = [line for line in prose if not re.search(r"\(\d{4}\)", line)]
    assert [line for line in undated if parse_line(line)] == []
    # Of the sentences that mention a film with its year, a few could be a title: "Stuff like George of the Jungle (1997)"
    dated = [
        line for line in prose if re.search(r"\(\d{4}\)", line) and len(re.sub(r"\S*\(\d{4}\)", "", line).split()) > 8
    ]
    taken = [line for line in dated if parse_line(line)]
    assert len(dated) > 1000
    assert len(taken) < 0.03 * len(dated), taken
