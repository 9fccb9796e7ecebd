"""Titles that teachers name -> places in a catalog: rule by rule, on pairs that real answers hold."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convrec_r1.data import movieland
from convrec_r1.distill.match import Matcher, spelling
from convrec_r1.lists import Item
from convrec_r1.matching import Folded, Matching

FOLDED = Folded()


def match(named: str | Item, *catalog: str | Item, counts=None, rule: Matching = FOLDED, fuzzy=92.0) -> tuple[int, str]:
    items = [item(text) for text in catalog]
    counts = np.zeros(len(items)) if counts is None else np.array(counts)
    found = Matcher(items, counts, rule, fuzzy).match([item(named)])
    return int(found.index[0]), str(found.how[0])


def item(text: str | Item) -> Item:
    if isinstance(text, Item):
        return text
    title, _, year = text.removesuffix(")").rpartition(" (")
    return Item(title, int(year)) if year.isdigit() and title else Item(text)


@pytest.mark.parametrize(
    ("named", "catalog", "expected"),
    [
        ("heat (1995)", ["Heat (1986)", "Heat (1995)"], (1, "exact")),
        ("Heat", ["Heat"], (0, "exact")),
        ("Ex Machina (2014)", ["Ex Machina (2015)"], (0, "year")),
        ("Kill Bill: Vol. 1 (2003)", ["Kill Bill: Volume 1 (2003)"], (0, "year")),
        ("Mission: Impossible - Fallout (2018)", ["Mission: Impossible \u2013 Fallout (2018)"], (0, "year")),
        ("The Godfather: Part II (1974)", ["The Godfather (1972)", "The Godfather Part II (1974)"], (1, "year")),
        ("Texas Chainsaw Massacre (1974)", ["The Texas Chain Saw Massacre (1974)"], (0, "year")),
        ("Tucker and Dale vs. Evil", ["Tucker & Dale vs Evil (2010)"], (0, "title")),
        ("Amelie", ["Am\u00e9lie (2001)"], (0, "title")),
        ("Heat (1995)", ["Heat"], (0, "title")),
        ("Heat (1995)", ["Heat (1986)"], (-1, "none")),  # another film of that name
        ("The Boy in the Striped Pajamas (2008)", ["The Boy in the Striped Pyjamas (2008)"], (0, "fuzzy")),
        ("The Boy in the Striped Pajamas (2001)", ["The Boy in the Striped Pyjamas (2008)"], (-1, "none")),
        # What real answers came near to and do not mean:
        ("The Haunting of Hill House", ["The Haunting of Hell House (1999)"], (-1, "none")),
        ("Dark Waters", ["Dark Water (2005)"], (-1, "none")),
        ("The Equalizer 2 (2018)", ["The Equalizer (2018)"], (-1, "none")),
        ("Alien 3 (1992)", ["Aliens (1992)", "Alien (1992)"], (-1, "none")),
        (
            "Nightmare on Elm Street 4: The Dream Master",
            ["A Nightmare on Elm Street 4: The Dream Master (1988)"],
            (0, "title"),
        ),
        ("The Naked Gun 33\u2153: The Final Insult", ["Naked Gun 33\u2153: The Final Insult (1994)"], (0, "title")),
    ],
)
def test_rules(named, catalog, expected):
    assert match(named, *catalog) == expected


def test_of_several_the_nearest_year_then_the_most_wanted_then_the_latest():
    catalog = ["Heat (1993)", "Heat (1996)", "Heat (1990)"]
    assert match("Heat (1995)", *catalog) == (1, "year")
    assert match("Heat", *catalog, counts=[1, 0, 5]) == (2, "title")
    assert match("Heat", *catalog) == (1, "title")


def test_the_settings_are_kept_to():
    assert match("Ex Machina (2014)", "Ex Machina (2015)", rule=Folded(year_tolerance=0)) == (-1, "none")
    near = ("The Boy in the Striped Pajamas (2008)", "The Boy in the Striped Pyjamas (2008)")
    assert match(*near, fuzzy=101) == (-1, "none")
    assert match(*near, fuzzy=99) == (-1, "none")


@dataclass(frozen=True)
class Aliases(Matching):
    """A user's rule: Se7en is Seven."""

    def key(self, title: str) -> str:
        return {"se7en": "seven"}.get(title.casefold(), title.casefold())


def test_a_users_rule_comes_first():
    catalog = ["Se7en (1995)", "Seven (1979)"]
    assert match("Seven (1995)", *catalog, rule=Aliases()) == (0, "exact")
    assert match("Seven (1996)", *catalog, rule=Aliases()) == (0, "year")
    assert match("Seven (1995)", *catalog) == (-1, "none")


@pytest.mark.parametrize(
    ("title", "same"),
    [
        ("The Matrix", "Matrix, The"),
        ("Spider-Man", "Spiderman"),
        ("E.T.", "ET"),
        ("Rocky IV", "Rocky 4"),
        ("Ocean's Eleven", "Oceans 11"),
        ("\u0141\u00f3d\u017a", "Lodz"),
        ("Harry Potter & the Deathly Hallows: Part 1", "Harry Potter and the Deathly Hallows Part One"),
    ],
)
def test_titles_that_are_one(title, same):
    assert spelling(title) == spelling(same)


@pytest.mark.parametrize(
    ("title", "other"),
    [("Nine", "9"), ("Toy Story", "Toy Story 2"), ("8\u00bd", "81/2"), ("In the Earth", "In Earth"),
     ("Bathe a Dog", "Bathe Dog"), ("\u5343\u3068\u5343\u5c0b", "\u5343")],
)  # fmt: skip
def test_titles_that_are_two(title, other):
    assert spelling(title) != spelling(other)


def test_every_film_of_a_catalog_is_itself():
    catalog = list(movieland.load(sizes={"train": 1, "validation": 1, "test": 1}).catalog)
    found = Matcher(catalog, np.zeros(len(catalog)), Folded(), 92).match(catalog)
    assert found.index.tolist() == list(range(len(catalog)))
    assert found.shares(np.arange(len(catalog)))["exact"] == 1
    assert found.shares(np.array([], dtype=np.int64)) == {}


def test_shares_by_hand():
    found = Matcher([Item("Heat", 1995)], np.zeros(1), Folded(), 92).match(
        [Item("Heat", 1995), Item("Heat"), Item("Big")]
    )
    assert found.shares(np.array([0, 0, 1, 2])) == {"exact": 0.5, "year": 0, "title": 0.25, "fuzzy": 0, "none": 0.25}


@given(st.lists(st.tuples(st.text(min_size=1, max_size=20), st.none() | st.integers(1890, 2030)), max_size=6))
def test_no_title_raises_and_all_matches_are_places(named):
    items = [Item(*each) for each in named]
    catalog = [Item("Heat", 1995), Item("Alien"), *items[:2]]
    found = Matcher(catalog, np.zeros(len(catalog)), Folded(), 92).match(items)
    assert ((found.index >= -1) & (found.index < len(catalog))).all()
    assert ((found.index < 0) == (found.how == "none")).all()
