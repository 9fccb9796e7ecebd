"""What teachers write -> items, ratings, descriptions: by example, and that nothing raises."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SHARED

from convrec_r1.distill.answers import descriptions, ratings, recommended
from convrec_r1.lists import Item

HEAT, ALIEN = Item("Heat", 1995), Item("Alien", 1979)


@pytest.mark.parametrize(
    "text",
    [
        "1. Heat (1995)\n2. Alien (1979)",
        "Here are some films:\n\n1) **Heat (1995)** - a heist\n2) **Alien** (1979): in space",
        "- Heat - 1995\n- Alien [1979]",
        "Heat (1995)\nAlien (1979 film)",
        '"Heat" (1995)\n\u201cAlien\u201d (dir. Ridley Scott, 1979)',
        "<think>1. Jaws (1975) is too obvious</think>\n1. Heat (1995)\n2. Alien (1979)\nEnjoy!",
        "### 1. Heat (1995)\n### 2. Alien (1979)",
        "Sure! I'd suggest:\n* Heat (1995)\n* Alien (1979)\n* Heat (1995)",
        "```\n1. Heat (1995)\n2. Alien (1979)\n```",
    ],
)
def test_lists_in_the_forms_that_teachers_use(text):
    assert recommended(text) == [HEAT, ALIEN]


def test_titles_without_a_year():
    assert recommended("1. Heat\n2. Mission: Impossible - Fallout\n3. Great Expectations") == [
        Item("Heat"), Item("Mission: Impossible - Fallout"), Item("Great Expectations"),
    ]  # fmt: skip
    assert recommended("1. Heat - a tense heist film with two great actors\n2. **Alien**: horror in space.") == [
        Item("Heat"), Item("Alien"),
    ]  # fmt: skip
    assert recommended("1. Heat\n2. Alien (1979)", has_yearless=False) == [ALIEN]


@pytest.mark.parametrize(
    "text",
    ["", "\n", "I'm sorry, I can't recommend films.", "What genre are you in the mood for?",
     "Sure, here are some: Heat, Alien and Jaws, all of which you might enjoy.", "<think>1. Heat (1995)"],
)  # fmt: skip
def test_what_holds_no_list(text):
    assert recommended(text) == []


@pytest.mark.parametrize(
    "text",
    ["1: 2\n2: -1\n3: 0", "1. +2\n2. \u22121\n3. 0", "[1]: 2\n[2]: -1\n[3]: 0", "1: 2, 2: -1, 3: 0",
     "1. Heat (1995): 2\n2. Alien (1979): -1\n3. Big (1988): 0", '{"1": 2, "2": -1, "3": 0}',
     'Scores:\n```json\n{"1": "2", "2": -1.0, "3": 0}\n```', "- 1: 2 (a heist)\n- 2: -1, too dark\n- 3: 0"],
)  # fmt: skip
def test_ratings_in_the_forms_that_judges_use(text):
    found = ratings(text, 3)
    assert found.scores == {1: 2, 2: -1, 3: 0}
    assert found.faulty == ()


@pytest.mark.parametrize(
    ("text", "faulty"),
    [
        ("1: 3\n2: 1", (1,)),  # out of range
        ("1: 1.5\n2: 1", (1,)),  # fractional
        ("1: 1\n1: 2\n2: 1", (1,)),  # two minds
        ("2: 1", (1,)),  # missing
        ("1 - 1\n2: 1", (1,)),  # minus, or a dash
        ("7: 2\n2: 1", (1,)),  # of no candidate
        ("1: maybe\n2: 1", (1,)),
        ("They are all great!", (1, 2)),
        ('{"1": true, "2": 1}', (1,)),
    ],
)
def test_rather_missing_than_wrong(text, faulty):
    assert ratings(text, 2).faulty == faulty


def test_descriptions_however_they_are_put():
    one = {"item": 1, "genres": ["crime"], "keywords": ["heist"], "plot": "A heist."}
    two = {"item": 2, "genres": "horror, sci-fi", "keywords": [], "plot": "In space."}
    wanted = {
        1: {"genres": ("crime",), "keywords": ("heist",), "plot": "A heist."},
        2: {"genres": ("horror", "sci-fi"), "keywords": (), "plot": "In space."},
    }
    for text in (
        f"{json.dumps(one)}\n{json.dumps(two)}",
        json.dumps([one, two], indent=2),
        f"Sure:\n```json\n{json.dumps({'items': [one, two]})}\n```",
        f'{json.dumps(one)}\n{{broken\n{json.dumps(two)}\n{{"item": 3, "genres": [',
    ):
        assert descriptions(text, 2) == wanted
    assert descriptions(json.dumps({"item": 3, "plot": "Beyond."}), 2) == {}
    assert descriptions(json.dumps({"item": 1, "genres": [1]}), 2) == {}
    assert descriptions(json.dumps({"item": 1, "genres": [], "plot": ""}), 2) == {}


@given(st.text(alphabet=st.characters() | st.sampled_from('0123456789-:.()[]{}"\n'), max_size=200), st.integers(0, 9))
def test_nothing_raises_and_everything_is_in_range(text, count):
    assert all(item.title for item in recommended(text))
    found = ratings(text, count)
    assert sorted([*found.scores, *found.faulty]) == list(range(1, count + 1))
    assert set(found.scores.values()) <= {-2, -1, 0, 1, 2}
    assert set(descriptions(text, count)) <= set(range(1, count + 1))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(-2, 2)), max_size=30, unique_by=lambda pair: pair[0]))
def test_what_is_written_as_asked_is_read(pairs):
    found = ratings("\n".join(f"{number}: {score}" for number, score in pairs), 30)
    assert found.scores == dict(sorted(pairs))


@pytest.mark.skipif(not (SHARED / "data" / "llm_outputs").exists(), reason="no answers of GPT-4 beside the project")
def test_real_answers_are_read():
    texts = [
        json.loads(line)["response"]
        for line in (SHARED / "data" / "llm_outputs" / "inspired_gpt-4.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert sum(len(recommended(text)) == 20 for text in texts) >= 226  # of 228; the others name a film twice
