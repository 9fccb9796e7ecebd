"""INSPIRED and ReDial in the form of "LLMs as Zero-Shot Conversational Recommenders"."""

import json
import logging
from pathlib import Path

import pytest
from data_files import DATA, real_data, write_rows

from convrec_r1.base.errors import UserError
from convrec_r1.data import Conversation, Dataset, Message
from convrec_r1.data.adapters.cikm23 import CIKM23, title
from convrec_r1.data.schema import SPLITS
from convrec_r1.lists import Item
from convrec_r1.matching import Folded
from convrec_r1.reward import relevance

ENTITIES = {
    "<http://dbpedia.org/resource/Heat_(1995_film)>": 0,
    "<http://dbpedia.org/resource/Alien_(film)>": 1,
    "<http://dbpedia.org/resource/Sigourney_Weaver>": 2,
    "<http://dbpedia.org/resource/Am%C3%A9lie>": 3,
}
ROW = {
    "dialog_id": "test_0", "turn_id": "test_4", "context": ["", "Hi", "Like Alien", "Why?", "Sigourney"], "rec": [0, 1, 3, 2],
    "prev_entity": [1, 2],
}  # fmt: skip


def write(folder: Path, *rows: dict, entities=ENTITIES, items=(0, 1, 3)) -> Path:
    write_rows(folder / "test.jsonl", *rows)
    (folder / "entity2id.json").write_text(json.dumps(entities), encoding="utf-8")
    (folder / "item_ids.json").write_text(json.dumps(items), encoding="utf-8")
    return folder


def load(path: Path, catalog: Path | None = None) -> Dataset:
    return CIKM23(path, Folded(), catalog).load()


def test_a_row(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dataset = load(write(tmp_path, ROW, {**ROW, "turn_id": 5, "rec": [1]}, {**ROW, "turn_id": 6, "context": [""]}))
    said = (
        Message("assistant", "Hi"),
        Message("user", "Like Alien"),
        Message("assistant", "Why?"),
        Message("user", "Sigourney"),
    )
    truth = (Item("Heat"), Item("Amélie"))
    assert dataset["test"] == [Conversation("test_0-test_4", "test_0", said, truth, ("Alien",), split="test")]
    assert list(dataset.catalog) == [Item("Heat"), Item("Alien"), Item("Amélie")]
    assert dataset["train"] == dataset["validation"] == []
    assert "3 items named before, 2 not in the catalog, 1 rows with no item left, 1 with no context" in caplog.text


def test_items_named_before_count_if_that_is_wanted(tmp_path):
    folder = write(tmp_path, ROW, {**ROW, "turn_id": 5, "rec": [1]})
    first, second = CIKM23(folder, Folded(), exclude_seen=False).load()["test"]
    assert first.ground_truth == (Item("Heat"), Item("Alien"), Item("Amélie"))
    assert second.ground_truth == (Item("Alien"),)
    assert first.seen == second.seen == ()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("<http://dbpedia.org/resource/Heat_(1995_film)>", "Heat"),
        ("<http://dbpedia.org/resource/Why_Him%3F>", "Why Him?"),
        ("<http://dbpedia.org/resource/(500)_Days_of_Summer>", "(500) Days of Summer"),
        ("<http://dbpedia.org/resource/The_Human_Centipede_(First_Sequence)>", "The Human Centipede (First Sequence)"),
        ("<http://dbpedia.org/resource/True_Blood_(season_1)>", "True Blood"),
        ("<http://dbpedia.org/resource/Tomorrow_(2014_American_film)>", "Tomorrow"),
        ("<http://dbpedia.org/resource/Numb_(Bishop_Briggs_song)>", "Numb"),
        ("Heat", "Heat"),
    ],
)
def test_titles_of_addresses(address, expected):
    assert title(address) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rec": [9]}, '"rec", entry 1: int 9 is not an id of entity2id.json'),
        ({"rec": "Heat"}, '"rec" must be a list of ids'),
        ({"prev_entity": [True]}, '"prev_entity", entry 1: true is not an id'),
        ({"context": [1]}, '"context", entry 1'),
        ({"dialog_id": None}, '"dialog_id" must be a string'),
        ({}, 'the id "test_0-test_4" was used before (test.jsonl, line 1)'),
    ],
)
def test_malformed_rows_are_named(tmp_path, change, expected):
    with pytest.raises(UserError) as error:
        load(write(tmp_path, ROW, {**ROW, **change}))
    assert str(error.value).startswith("test.jsonl, line 2: ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"entities": []}, "entity2id.json: it must be an object"),
        ({"entities": {"Heat": "0"}}, 'entity2id.json, entry "Heat": the id must be a whole number'),
        ({"entities": {" ": 0}}, "entity2id.json: the entry of id 0 has no name"),
        ({"items": []}, "item_ids.json: it must be a list of ids"),
        ({"items": [7]}, "item_ids.json, entry 1: int 7 is not an id"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, files, expected):
    with pytest.raises(UserError) as error:
        load(write(tmp_path, ROW, **files))
    assert expected in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"holds none of train\.jsonl"):
        load(tmp_path)
    write(tmp_path, ROW)
    (tmp_path / "item_ids.json").unlink()
    with pytest.raises(UserError, match=r"item_ids\.json does not exist"):
        load(tmp_path)


@real_data
@pytest.mark.parametrize(("name", "size", "items"), [("inspired", 190, 1109), ("redial", 1622, 5859)])
def test_the_published_files(name, size, items):
    dataset = load(DATA / "cikm23" / name)
    assert all(c.messages[-1].role == "user" for c in dataset["test"])
    assert all(item in dataset.catalog for c in dataset["test"] for item in c.ground_truth)
    assert ([len(dataset[split]) for split in SPLITS], len(dataset.catalog)) == ([0, 0, size], items)


@real_data
def test_answers_of_gpt_4_are_judged_by_titles_alone():
    """../shared/data/llm_outputs: what GPT-4 answered to the contexts, mostly without years."""
    dataset = load(DATA / "cikm23" / "inspired")
    rows = [json.loads(line) for line in (DATA / "cikm23" / "inspired" / "test.jsonl").read_text().splitlines()]
    file = DATA / "llm_outputs" / "inspired_gpt-4.jsonl"
    answers = [json.loads(line)["response"] for line in file.read_text().splitlines()]
    asked = {f"{row['dialog_id']}-{row['turn_id']}": answer for row, answer in zip(rows, answers, strict=True)}
    hits = {
        rule: sum(
            sum(relevance(asked[c.id], c.ground_truth, c.seen, dataset.catalog, 20, match=rule))
            for c in dataset["test"]
        )
        for rule in ("folded", "normalised")
    }
    assert hits == {"folded": 37, "normalised": 37}
