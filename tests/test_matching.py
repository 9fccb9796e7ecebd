"""The rules for "the same item", alone and where they are used."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SHARED, examples, make_config

from convrec_r1.base.plugins import build
from convrec_r1.config.checks import problems
from convrec_r1.data import Catalog
from convrec_r1.lists import Item, fold
from convrec_r1.matching import Folded, Matching, Normalised, as_matching, catalog_notes, near_duplicates, unnameable
from convrec_r1.reward import relevance

SAME_IF_NORMALISED = [
    ("Amélie", "Amelie"),
    ("Léon: The Professional", "Leon - The Professional"),
    ("Spider-Man", "Spiderman"),
    ("Spider-Man", "Spider Man"),
    ("Schindler\u2019s List", "Schindler's List"),
    ("Schindler\u02bcs List", "Schindlers List"),
    ("Ocean`s Eleven", "Ocean\u2032s Eleven"),
    ("The Matrix", "Matrix"),
    ("Matrix, The", "The  Matrix"),
    ("A Beautiful Mind", "Beautiful Mind, A"),
    ("E.T. the Extra-Terrestrial", "ET the Extra Terrestrial"),
    ("Fast & Furious", "Fast and Furious"),
    ("10,000 BC", "10000 BC"),
    ("Se\u00adven", "Seven"),
    ("STRASSE", "straße"),
    ("Caf\u0065\u0301", "Café"),
    ("Alien\u00b3", "Alien 3"),
    ("8\u00bd", "8 1/2"),
    ("\uff28\uff45\uff41\uff54", "Heat"),
    ("Dolce vita, La", "La dolce vita"),
    ("Avventura, L'", "L\u2019avventura"),
    ("Lord of the Rings, The: The Two Towers", "The Lord of the Rings: The Two Towers"),
    ("Lord of the Rings: The Two Towers, The", "Lord of the Rings: The Two Towers"),
    ("400 Coups, Les", "Les 400 coups"),
    ("Himmel \u00fcber Berlin, Der", "Der Himmel uber Berlin"),
    ("Mother!", "mother"),
    ("Good, the Bad and the Ugly, The", "The Good, the Bad & the Ugly"),
]
OTHERS = [
    ("Alien", "Aliens"),
    ("Rocky", "Rocky II"),
    ("Rocky II", "Rocky III"),
    ("Toy Story 2", "Toy Story 3"),
    ("Die Hard", "Hard"),  # an article of another language is moved, not removed
    ("La La Land", "La Land"),
    ("Crazy, Stupid, Love", "Love Crazy, Stupid"),
    ("Blade Runner", "Blade Runner 2049"),
    ("The", "A"),
    ("!!!", "???"),
    ("Them!", "The Thing"),
    ("千と千尋の神隠し", "もののけ姫"),
    ("ガ", "カ"),  # the mark of another script is a letter of its own, not an accent
]


@pytest.mark.parametrize(("one", "other"), SAME_IF_NORMALISED)
def test_normalised_forgives_spelling(one, other):
    rule = Normalised()
    assert rule.key(one) == rule.key(other)


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_different_titles_stay_different(one, other):
    for rule in (Folded(), Normalised()):
        assert rule.key(one) != rule.key(other)


@settings(max_examples=examples(300))
@given(st.text(max_size=20), st.sampled_from([str.upper, str.swapcase, lambda s: f"  {s}\t", lambda s: s]))
def test_what_folding_calls_the_same_normalising_does_too(title, change):
    if fold(title) == fold(change(title)):
        assert Normalised().key(title) == Normalised().key(change(title))
    assert bool(Normalised().key(title)) == bool(fold(title))


def test_years():
    rule = Folded(year_tolerance=2)
    assert [rule.years_match(1995, year) for year in (1992, 1993, 1997, 1998, None)] == [False, True, True, False, True]
    assert rule.years_match(None, None)
    assert (rule.year_distance(1995, 1998), rule.year_distance(None, 1998)) == (3, 0)


def test_as_matching():
    assert as_matching("folded", 5) == Folded(5)
    assert as_matching("normalised") == Normalised(2)
    rule = Normalised(0)
    assert as_matching(rule, 9) is rule
    with pytest.raises(ValueError, match="'exact'"):
        as_matching("exact")


def test_a_catalog_finds_its_own_spelling():
    catalog = Catalog([Item("Leon", 1994), Item("Léon", 1994), Item("Matrix, The", 1999)])
    rule = Normalised()
    assert catalog.find(Item("LÉON", 1994), rule) == Item("Léon", 1994)
    assert catalog.find(Item("Le'on", 1994), rule) == Item("Leon", 1994)
    assert catalog.find(Item("The Matrix", 1999), rule) == Item("Matrix, The", 1999)
    assert catalog.find(Item("The Matrix", 1998), rule) is None
    assert catalog.find(Item("The Matrix", 1999)) is None
    assert catalog.titled("leon", rule) == [Item("Leon", 1994), Item("Léon", 1994)]
    assert len(catalog) == 3


def test_a_catalog_is_told_what_it_holds():
    films = Catalog(
        [Item("Amelie", 2001), Item("Am\u00e9lie", 2001), Item("Dune", 1984), Item("Dune", 2021), Item("Ben Hur", 80)]
    )
    assert near_duplicates(films, Normalised()) == [(Item("Amelie", 2001), Item("Am\u00e9lie", 2001))]
    assert near_duplicates(films, Folded()) == []
    assert unnameable(films) == [Item("Ben Hur", 80)]
    same, lost = catalog_notes(films, Normalised())
    assert "1 item is the same as another one under match=" in same
    assert "Amelie (2001) and Am\u00e9lie (2001)" in same
    assert "'Ben Hur (80)'" in lost
    assert catalog_notes(Catalog([Item("Heat", 1995), Item("Go")]), Normalised()) == []


def test_near_duplicates_of_reddit_v2():
    path = SHARED / "data" / "reddit_v2" / "gt_catalog.pkl"
    if not path.exists():
        pytest.skip(f"no sample of Reddit-v2 at {path}")
    pairs = near_duplicates(Catalog.load(path), Normalised())
    articles = [
        pair
        for pair in pairs
        if {fold(item.title).removeprefix("the ") for item in pair} == {fold(pair[0].title).removeprefix("the ")}
    ]
    assert (len(pairs), len(articles)) == (27, 3)  # 24 apart from The Fall and Fall, which are different films


def test_relevance_under_each_rule():
    catalog = Catalog([Item("Amélie", 2001), Item("The Matrix", 1999), Item("Heat", 1995)])
    truth = [("Amelie", 2002), ("Matrix, The", 1999), ("Heat", 1995)]
    text = "Amelie (2001)\nMatrix (1999)\nHeat (1995)\nHEAT (1995)"
    assert relevance(text, truth, [], catalog, 4) == [0, 0, 1, 0]
    assert relevance(text, truth, [], catalog, 4, match="normalised") == [1, 1, 1, 0]
    assert relevance(text, truth, [], catalog, 4, match="normalised", year_tolerance=0) == [0, 1, 1, 0]
    assert relevance(text, truth, [], catalog, 4, match=Normalised(0)) == [0, 1, 1, 0]
    assert relevance(text, truth, ["matrix"], catalog, 4, match="normalised") == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="match"):
        relevance(text, truth, [], catalog, 4, match="exact")


@dataclass(frozen=True)
class FirstWord(Matching):
    """A user's rule: titles with the same first word are the same."""

    words: int = 1

    def key(self, title: str) -> str:
        return " ".join(fold(title).split()[: self.words])


def test_a_rule_of_ones_own():
    rule = build({"_target_": f"{__name__}.FirstWord", "words": 1}, "match", Matching)
    catalog = Catalog([Item("Heat", 1995)])
    assert relevance("Heat of the Night (1995)", [("heat wave", 1995)], [], catalog, 1, match=rule) == [1]


def test_the_config_builds_a_rule():
    assert build(make_config().match, "match", Matching) == Normalised(2)  # of our own recipes
    assert build(make_config("recipe=paper").match, "match", Matching) == Folded(2)
    assert build(make_config("model=qwen2.5-0.5b", "match.year_tolerance=0").match, "match", Matching) == Folded(0)
    assert build(make_config("match=folded").match, "match", Matching) == Folded(2)
    cfg = make_config("match=normalised", "match.year_tolerance=1")
    assert build(cfg.match, "match", Matching) == Normalised(1)
    assert any("match.year_tolerance=-1" in line for line in problems(make_config("match.year_tolerance=-1")))
