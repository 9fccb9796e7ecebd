"""ReDial: official dialogues and iEvaLM's turns."""

import logging
from pathlib import Path

import pytest
from data_files import DATA, real_data, write_rows

from convrec_r1 import lists
from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.adapters.reddit_v2 import RedditV2
from convrec_r1.data.adapters.redial import Redial
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Message
from convrec_r1.lists import Item
from convrec_r1.matching import Folded


def load(path: str | Path, catalog: Path | None = None) -> Dataset:
    return Redial(path, Folded(), catalog).load()


def dialogue(identifier="d1", texts=(), mentions=None, **fields):
    """A dialogue; texts are (worker, text) with 1 the seeker and 2 the recommender."""
    return {
        "conversationId": identifier,
        "initiatorWorkerId": 1,
        "respondentWorkerId": 2,
        "messages": [{"senderWorkerId": worker, "text": text} for worker, text in texts],
        "movieMentions": mentions if mentions is not None else {"11": "Heat  (1995)", "12": "Alien (1979)"},
        "initiatorQuestions": [],
        "respondentQuestions": [],
        **fields,
    }


def load_dialogues(folder: Path, *rows: dict, name="test_data.jsonl", **options):
    write_rows(folder / name, *rows)
    dataset = load(folder, **options)
    return [found for split in SPLITS for found in dataset[split]]


def test_redial_dialogue(tmp_path):
    texts = [
        (1, "Hi"),
        (1, "I liked @12"),
        (2, ""),
        (2, "Try @11 !"),
        (2, "@99 too"),
        (1, "Seen @11."),
        (2, "@11 it is"),
    ]
    (found,) = load_dialogues(tmp_path, dialogue(texts=texts))
    assert found == Conversation(
        "d1-1", "d1", (Message("user", "Hi\nI liked Alien (1979)"),), (Item("Heat", 1995),), ("Alien",), split="test"
    )


def test_redial_context_grows_and_seen_with_it(tmp_path):
    found = load_dialogues(tmp_path, dialogue(texts=[(1, "Hi"), (2, "@11 or @11?"), (1, "no"), (2, "@12")]))
    assert [one.id for one in found] == ["d1-1", "d1-3"]
    assert found[0].ground_truth == (Item("Heat", 1995),)
    assert found[1].messages == (
        Message("user", "Hi"),
        Message("assistant", "Heat (1995) or Heat (1995)?"),
        Message("user", "no"),
    )
    assert found[1].seen == ("Heat",)


@pytest.mark.parametrize("form", ["initiatorQuestions", "respondentQuestions"])
def test_redial_films_the_seeker_dislikes_are_no_ground_truth(tmp_path, form, caplog):
    answers = {"11": {"liked": 0}, "12": {"liked": 2}}
    with caplog.at_level(logging.INFO):
        (found,) = load_dialogues(tmp_path, dialogue(texts=[(1, "Hi"), (2, "@11 @12")], **{form: answers}))
    assert found.ground_truth == (Item("Alien", 1979),)
    assert "1 disliked" in caplog.text


def test_redial_titles_as_they_come(tmp_path):
    mentions = {"1": None, "2": "Anchorman ", "3": "Why Him%3F (2016)", "4": "The   Room  (2003)", "5": " "}
    (found,) = load_dialogues(tmp_path, dialogue(texts=[(1, "@1 hm"), (2, "@1 @2 @3 @4 @5")], mentions=mentions))
    assert found.ground_truth == (Item("Anchorman"), Item("Why Him?", 2016), Item("The Room", 2003))
    assert found.messages == (Message("user", "@1 hm"),)


def test_redial_a_remake_of_a_seen_title_is_no_ground_truth(tmp_path):
    mentions = {"1": "Jumanji (1995)", "2": "Jumanji (2017)", "3": "Heat (1995)"}
    (found,) = load_dialogues(tmp_path, dialogue(texts=[(1, "@1"), (2, "@2 or @3")], mentions=mentions))
    assert found.ground_truth == (Item("Heat", 1995),)


def test_redial_leaves_out_what_cannot_be_scored(tmp_path, caplog):
    catalog = tmp_path / "elsewhere.csv"
    catalog.write_text("title,year\nHeat,1995\n")
    with caplog.at_level(logging.INFO):
        (found,) = load_dialogues(
            tmp_path,
            dialogue("a", [(1, "Hi"), (2, "@11 @12")]),
            dialogue("b", [(1, "Hi"), (2, "@12")]),
            dialogue("c", [(2, "@11"), (1, "Hi")]),
            dialogue("d", [(1, "Hi")], mentions=[]),
            catalog=catalog,
        )
    assert (found.id, found.ground_truth) == ("a-1", (Item("Heat", 1995),))
    assert (
        "2 not in the catalog; conversations left out: 1 with no ground truth in the catalog, 1 with no" in caplog.text
    )


def test_redial_catalog_beside_the_data_or_made_of_mentions(tmp_path):
    rows = [dialogue(texts=[(1, "Hi"), (2, "@11")], mentions={"11": "Heat  (1995)", "12": "Anchorman "})]
    assert list(load(write_rows(tmp_path / "a" / "x.jsonl", *rows)).catalog) == [
        Item("Heat", 1995),
        Item("Anchorman"),
    ]
    write_rows(tmp_path / "movies.jsonl", {"id": "1", "name": "Heat (1995)"}, {"id": "2", "name": "Alien (1979)"})
    assert list(load(tmp_path / "a" / "x.jsonl").catalog) == [Item("Heat", 1995), Item("Alien", 1979)]


def test_redial_makes_up_missing_splits(tmp_path):
    rows = [dialogue(f"d{number}", [(1, "Hi"), (2, "@11"), (1, "no"), (2, "@12")]) for number in range(150)]
    write_rows(tmp_path / "train_data.jsonl", *rows)
    dataset = load(tmp_path)
    assert all(dataset[split] for split in SPLITS)
    clusters = [{found.cluster for found in dataset[split]} for split in SPLITS]
    assert len(set.union(*clusters)) == sum(map(len, clusters)) == 150

    write_rows(tmp_path / "test_data.jsonl", dialogue("t", [(1, "Hi"), (2, "@11")]))
    dataset = load(tmp_path)
    assert [found.id for found in dataset["test"]] == ["t-1"]
    assert dataset["validation"]
    assert {found.cluster for found in dataset["validation"]} == clusters[1]

    write_rows(tmp_path / "valid_data.jsonl", dialogue("v", [(1, "Hi"), (2, "@11")]))
    assert [len(load(tmp_path)[split]) for split in SPLITS] == [300, 1, 1]
    assert [len(load(tmp_path / "valid_data.jsonl")[split]) for split in SPLITS] == [0, 1, 0]


TURN = {
    "dialog_id": "9",
    "turn_id": 4,
    "context": ["", "Hello", "Like Alien (1979) or Anchorman, with Eve"],
    "entity": ["Alien  (1979)", "Anchorman", "Eve"],
    "rec": ["Heat (1995)", "Alien (1979)", "Anchorman"],
    "resp": "",
}


def test_redial_turns(tmp_path):
    names = ["Heat (1995)", "Alien (1979)", "Anchorman"]
    write_rows(tmp_path / "movies.jsonl", *({"name": name} for name in names))
    write_rows(
        tmp_path / "test_turns.jsonl", TURN, {**TURN, "turn_id": 5, "rec": []}, {**TURN, "turn_id": 6, "context": [""]}
    )
    messages = (Message("assistant", "Hello"), Message("user", "Like Alien (1979) or Anchorman, with Eve"))
    expected = Conversation("9-4", "9", messages, (Item("Heat", 1995),), ("Alien", "Anchorman"), split="test")
    for path in (tmp_path, tmp_path / "test_turns.jsonl"):
        dataset = load(path)
        assert (dataset["train"], dataset["validation"], dataset["test"]) == ([], [], [expected])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (dialogue(messages="x"), '"messages" must be a list of {text, senderWorkerId}, found str'),
        (dialogue(messages=["x"]), "\"messages\" must be a list of {text, senderWorkerId}, found str 'x' in it"),
        (dialogue(messages=[{"senderWorkerId": 1, "text": 3}]), '"text" of a message must be a string'),
        (dialogue(mentions=["Heat"]), '"movieMentions" must be an object by film id, found a list of 1'),
        (dialogue(mentions={"1": 3}), '"movieMentions", film 1: the title must be a string'),
        (dialogue(initiatorQuestions="no"), '"initiatorQuestions" must be an object'),
        (dialogue(initiatorWorkerId=None), '"initiatorWorkerId" must be a string, found null'),
        ({**TURN, "context": "Hi"}, '"context" must be a list of texts'),
        ({**TURN, "context": [1]}, '"context" must be a list of texts'),
        ({**TURN, "rec": [7]}, '"rec", entry 1: a title must be a string'),
        ({"conversationId": "x"}, '"initiatorWorkerId" must be'),
        (dialogue(texts=[(1, "Hi"), (2, "@11")]), 'the id "d1-1" was used before (train_data.jsonl, line 1)'),
    ],
)
def test_redial_malformed_rows_are_named(tmp_path, row, expected):
    write_rows(tmp_path / "train_data.jsonl", dialogue(texts=[(1, "Hi"), (2, "@11")]), row)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(error.value).startswith("train_data.jsonl, line 2: ")
    assert expected in str(error.value)


def test_redial_without_files_or_films(tmp_path):
    with pytest.raises(UserError, match=r"holds none of train_data\.jsonl"):
        load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "x.jsonl")
    write_rows(tmp_path / "x.jsonl", dialogue(mentions={}))
    with pytest.raises(UserError, match="mentions no films"):
        load(tmp_path / "x.jsonl")


@real_data
def test_redial_sample():
    dataset = load(DATA / "redial")
    assert [len(dataset[split]) for split in SPLITS] == [1810, 200, 1536]
    assert len(dataset.catalog) == 6574
    everything = [found for split in SPLITS for found in dataset[split]]
    assert len({found.id for found in everything}) == len(everything)
    for found in everything:
        assert found.demonstration is None
        assert found.messages[-1].role == "user"
        assert not {lists.fold(title) for title in found.seen} & {lists.fold(item.title) for item in found.ground_truth}
        assert all(item in dataset.catalog for item in found.ground_truth)
    first = next(found for found in everything if found.cluster == "16162")
    assert first.ground_truth == (Item("The Shining", 1980), Item("What Lies Beneath", 2000))
    assert first.seen == ("The Babadook",)
    assert first.messages[-1].content == "Hi im looking for a good horroe movie like The Babadook (2014)"
    assert dataset["test"][0].ground_truth == (Item("Police Academy", 1984),)


@real_data
def test_real_data_survives_our_own_schema(tmp_path):
    for dataset in (load(DATA / "redial"), RedditV2(DATA / "reddit_v2" / "jsonl", Folded()).load()):
        everything = [found for split in SPLITS for found in dataset[split]]
        jsonl.dump(everything, tmp_path / "all.jsonl")
        assert jsonl.read(tmp_path / "all.jsonl") == everything
