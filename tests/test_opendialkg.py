"""OpenDialKG: films and books, titles without years."""

import logging
from pathlib import Path

import pytest
from data_files import DATA, real_data, write_rows

from convrec_r1.base.errors import UserError
from convrec_r1.data import Conversation, Dataset, Message
from convrec_r1.data.adapters.opendialkg import OpenDialKG
from convrec_r1.data.schema import SPLITS
from convrec_r1.lists import Item
from convrec_r1.matching import Folded

ITEMS = [
    {"id": "0", "name": "Heat", "year": "1995", "director": ["Michael Mann"]},
    {"id": "1", "name": "Ulysses", "writer": ["James Joyce"]},
    {"id": "2", "name": "The Great Gatsby (Drama Film)"},
]
ROW = {
    "dialog_id": 4, "turn_id": 3, "context": ["Do you like heat?", "Yes. And books?", "Novels"],
    "entity": ["heat", "Novels"], "rec": ["Ulysses", "Heat", "Emma"], "resp": "",
}  # fmt: skip


def write(folder: Path, *rows: dict, name: str = "train.jsonl") -> Path:
    write_rows(folder / name, *rows)
    write_rows(folder / "items.jsonl", *ITEMS)
    return folder


def load(path: Path, catalog: Path | None = None) -> Dataset:
    return OpenDialKG(path, Folded(), catalog).load()


def test_a_row(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dataset = load(write(tmp_path, ROW, {**ROW, "turn_id": 5, "rec": []}, name="test.jsonl"))
    said = (
        Message("user", "Do you like heat?"),
        Message("assistant", "Yes. And books?"),
        Message("user", "Novels"),
    )
    assert dataset["test"] == [Conversation("4-3", "4", said, (Item("Ulysses"),), ("heat",), split="test")]
    assert list(dataset.catalog) == [Item("Heat"), Item("Ulysses"), Item("The Great Gatsby (Drama Film)")]
    assert "1 items named before, 1 not in the catalog, 1 rows with no item left" in caplog.text


def test_a_dialogue_is_in_one_split_only(tmp_path, caplog):
    write(tmp_path, ROW, {**ROW, "turn_id": 5}, {**ROW, "dialog_id": 6})
    write(tmp_path, {**ROW, "turn_id": 1}, {**ROW, "dialog_id": 7}, name="valid.jsonl")
    write(tmp_path, {**ROW, "dialog_id": 7, "turn_id": 9}, name="test.jsonl")
    with caplog.at_level(logging.INFO):
        dataset = load(tmp_path)
    assert {split: [c.id for c in dataset[split]] for split in SPLITS} == {
        "train": ["6-3"],
        "validation": ["4-1"],
        "test": ["7-9"],
    }
    assert "3 rows whose dialogue is in a later split" in caplog.text


def test_missing_splits_are_made_of_dialogues(tmp_path):
    dataset = load(write(tmp_path, *({**ROW, "dialog_id": number // 2, "turn_id": number} for number in range(200))))
    clusters = [{c.cluster for c in dataset[split]} for split in SPLITS]
    assert all(clusters)
    assert len(set.union(*clusters)) == sum(map(len, clusters)) == 100


def test_metadata_has_the_catalogs_titles(tmp_path):
    adapter = OpenDialKG(write(tmp_path, ROW), Folded())
    assert list(adapter.metadata())[:2] == [
        {"title": "Heat", "id": "0", "director": ["Michael Mann"]},
        {"title": "Ulysses", "id": "1", "writer": ["James Joyce"]},
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rec": "Heat"}, '"rec" must be a list of titles'),
        ({"rec": [1]}, '"rec", entry 1: a title must be a string'),
        ({"context": "Hi"}, '"context" must be a list'),
        ({"dialog_id": None}, '"dialog_id" must be a string'),
        ({}, 'the id "4-3" was used before (train.jsonl, line 1)'),
    ],
)
def test_malformed_rows_are_named(tmp_path, change, expected):
    with pytest.raises(UserError) as error:
        load(write(tmp_path, ROW, {**ROW, **change}))
    assert str(error.value).startswith("train.jsonl, line 2: ")
    assert expected in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"holds none of train\.jsonl"):
        load(tmp_path)
    write_rows(tmp_path / "train.jsonl", ROW)
    with pytest.raises(UserError, match=r"No catalog \(items\.jsonl\)"):
        load(tmp_path)


@real_data
def test_the_published_files():
    dataset = load(DATA / "opendialkg")
    clusters = [{c.cluster for c in dataset[split]} for split in SPLITS]
    assert len(set.union(*clusters)) == sum(map(len, clusters))
    everything = [c for split in SPLITS for c in dataset[split]]
    assert all(c.messages[-1].role == "user" for c in everything)
    assert all(item in dataset.catalog and item.year is None for c in everything for item in c.ground_truth)
    assert ([len(dataset[split]) for split in SPLITS], len(dataset.catalog)) == ([2923, 782, 334], 3669)
