"""Conditions on items: what they select, and what is said about those that cannot be read."""

import contextlib
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.base.errors import UserError
from convrec_r1.data import Catalog
from convrec_r1.lists import Item, fold
from convrec_r1.serve.filters import DEEPEST, Condition

HEAT, ALIEN, AMELIE, ROPE = Item("Heat", 1995), Item("Alien", 1979), Item("Amélie", 2001), Item("Salt and Rope")
CATALOG = Catalog([HEAT, ALIEN, AMELIE, ROPE])
FIELDS = {
    HEAT: {"genre": ("crime", "drama"), "person": ("Michael Mann",)},
    ALIEN: {"genre": ("horror", "Science Fiction")},
    AMELIE: {"genre": ("comedy",)},
}


def select(text: str) -> set[str]:
    return {item.title for item in Condition.parse(text).select(CATALOG, FIELDS)}


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("genre=comedy", {"Amélie"}),
        ("genre = comedy or genre=crime and year<1990", {"Amélie"}),
        ("(genre = comedy or genre=crime) and year<2000", {"Heat"}),
        ("genre=science fiction", {"Alien"}),
        ("GENRE='SCIENCE  fiction' AND Year>=1979", {"Alien"}),
        ("year in [1995, 2001]", {"Heat", "Amélie"}),
        ('genre in [horror, "crime"]', {"Heat", "Alien"}),
        ("not genre in [horror, crime]", {"Amélie", "Salt and Rope"}),
        ("genre!=horror", {"Heat", "Amélie", "Salt and Rope"}),
        ("year!=1995", {"Alien", "Amélie", "Salt and Rope"}),
        ("not year>1900", {"Salt and Rope"}),
        ('title="salt and rope"', {"Salt and Rope"}),
        ("title=AMÉLIE", {"Amélie"}),
        ("person=Michael Mann", {"Heat"}),
        ("not not (not year==1995)", {"Alien", "Amélie", "Salt and Rope"}),
        (r'title="a \" quote"', set()),
        ("year>99999999", set()),
    ],
)
def test_what_conditions_select(text, titles):
    assert select(text) == titles


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "where is empty"),
        ("genre", "character 6: expected =, !=, <, <=, >, >= or `in` after genre, found the end"),
        ("genre=comedy und year>1990", "character 22: expected `and`, `or` or the end, found '>'"),
        ("genre=comedy and", "character 17: expected a field"),
        ("year>1990s", "character 1: year is compared with a number, found '1990s'"),
        ("genre>comedy", "only year has an order"),
        ("(year>1990", "character 11: expected ), found the end"),
        ("year>1990)", "character 10: expected `and`, `or` or the end, found ')'"),
        ("year in 1990", "character 9: expected [, found '1990'"),
        ("year in []", "character 10: expected a value, found ']'"),
        ('title="Heat', "character 7: a quote is not closed"),
        ("genra=comedy", "no field 'genra'; it has: title, year, genre, person"),
        ("year>1990 or genra=comedy", "character 14: "),
        ("not " * (DEEPEST + 1) + "year=1", "more than 50"),
        ("year=1 and " * 2000 + "year=1", "at most 10,000"),
    ],
)
def test_conditions_that_cannot_be_read(text, said):
    with pytest.raises(UserError) as raised:
        select(text)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 300


NAMES = ("genre", "mood")
VALUES = ("red", "Deep Blue", "and", "x=1", 'say "hi"', "it's", "(or)", "ünder", "1990")
ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne}
_items = st.lists(
    st.tuples(
        st.sampled_from(["A", "B b", "Ç"]), st.none() | st.integers(1990, 1993),
        st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(VALUES), min_size=1, max_size=3)),
    ),
    min_size=1, max_size=6, unique_by=lambda row: (fold(row[0]), row[1]),
)  # fmt: skip
_leaves = st.one_of(
    st.tuples(st.just("year"), st.sampled_from(sorted(ORDERS)), st.integers(1989, 1994)),
    st.tuples(
        st.sampled_from([*NAMES, "title"]), st.sampled_from(["=", "!="]), st.sampled_from([*VALUES, "a", "b  B"])
    ),
    st.tuples(st.sampled_from(NAMES), st.just("in"), st.lists(st.sampled_from(VALUES), min_size=1, max_size=3)),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


def written(tree) -> str:
    """A tree as a condition."""
    match tree:
        case ("not", inner):
            return f"not ({written(inner)})"
        case (("and" | "or") as word, parts):
            return f" {word} ".join(f"({written(part)})" for part in parts)
        case (name, "in", values):
            return f"{name} in [{','.join(map(quoted, values))}]"
        case (name, sign, value):
            return f"{name} {sign} {value if name == 'year' else quoted(value)}"
    raise AssertionError(tree)


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def holds(tree, title: str, year: int | None, fields) -> bool:
    """The same tree in plain Python."""
    match tree:
        case ("not", inner):
            return not holds(inner, title, year, fields)
        case (("and" | "or") as word, parts):
            return (all if word == "and" else any)(holds(part, title, year, fields) for part in parts)
        case ("year", sign, value):
            return sign == "!=" if year is None else ORDERS[sign](year, value)
        case (name, sign, value):
            has = [fold(v) for v in ([title] if name == "title" else fields.get(name, []))]
            wanted = [fold(v) for v in (value if sign == "in" else [value])]
            return any(v in has for v in wanted) != (sign == "!=")
    raise AssertionError(tree)


@settings(max_examples=examples(200))
@given(_items, _trees)
def test_conditions_select_what_plain_python_selects(rows, tree):
    items = {
        Item(title, year): {name: tuple(values) for name, values in fields.items()} for title, year, fields in rows
    }
    known = {item: fields for item, fields in items.items() if fields}
    named = {name for fields in known.values() for name in fields}
    condition = Condition.parse(written(tree))
    if unknown := {c.field for c in condition.comparisons()} - named - {"title", "year"}:
        with pytest.raises(UserError, match=f"no field '({'|'.join(unknown)})'"):
            condition.select(Catalog(items), known)
        return
    expected = {item for item, fields in items.items() if holds(tree, *item, fields)}
    assert condition.select(Catalog(items), known) == expected


@settings(max_examples=examples(200))
@given(st.text(alphabet="year genre=<>!()[],'\"\\and not or in 19", max_size=40))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UserError):  # nothing else
        select(text)
