"""INSPIRED: the published tab-separated files."""

import logging
from pathlib import Path

import pytest
from data_files import DATA, real_data

from convrec_r1.base.errors import UserError
from convrec_r1.data import Conversation, Dataset, Message
from convrec_r1.data.adapters.inspired import Inspired
from convrec_r1.data.schema import SPLITS
from convrec_r1.lists import Item
from convrec_r1.matching import Folded, Normalised

HEADER = "dialog_id\tutt_id\tspeaker\tturn_id\ttext\tmovies\tmovie_dict"
FILMS = "{'Heat (1995)': 0, \"Ocean's Eleven (2001)\": 1, 'Alien (1979)': 2}"
ROWS = [
    ("d1", 1, "RECOMMENDER", 1, "Hi", "", FILMS),
    ("d1", 2, "SEEKER", 1, "I loved QUOTATION_MARKAlienQUOTATION_MARK.", "Alien (1979)", FILMS),
    ("d1", 3, "SEEKER", 1, '"What "" else?"', "", FILMS),
    ("d1", 4, "RECOMMENDER", 2, "Alien is great", "Alien (1979)", FILMS),
    (
        "d1",
        5,
        "RECOMMENDER",
        2,
        "Try Heat, or Ocean's Eleven",
        "Heat (1995);  Ocean's Eleven (2001); Try (2010)",
        FILMS,
    ),
    ("d1", 6, "SEEKER", 2, "Why?", "", FILMS),
    ("d1", 7, "RECOMMENDER", 3, "Heat is good", "Heat (1995)", FILMS),
]


def write(folder: Path, *rows: tuple, name: str = "train.tsv", header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header, *("\t".join(map(str, row)) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def load(path: Path, catalog: Path | None = None, match=None) -> Dataset:
    return Inspired(path, match or Folded(), catalog).load()


def test_a_dialogue(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dataset = load(write(tmp_path, *ROWS, name="test.tsv"))
    said = (Message("assistant", "Hi"), Message("user", 'I loved "Alien".\nWhat " else?'))
    truth = (Item("Heat", 1995), Item("Ocean's Eleven", 2001))
    assert dataset["test"] == [Conversation("d1-4", "d1", said, truth, ("Alien",), split="test")]
    assert list(dataset.catalog) == [Item("Heat", 1995), Item("Ocean's Eleven", 2001), Item("Alien", 1979)]
    assert "films: 1 not in movie_dict, 2 named before, 0 not in the catalog, 0 before anything was said" in caplog.text


def test_the_rule_for_the_same_item_holds_here_too(tmp_path):
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("title,year\nOceans Eleven,2001\n")
    assert load(write(tmp_path / "a", *ROWS), catalog)["train"] == []
    dataset = load(tmp_path / "a", catalog, Normalised())
    (found,) = [c for split in SPLITS for c in dataset[split]]
    assert found.ground_truth == (Item("Ocean's Eleven", 2001),)


def test_a_dialogue_whose_films_cannot_be_read_is_left_out(tmp_path, caplog):
    broken = [(name.replace("d1", "d2"), *rest, "{'Heat (1995): 0}") for name, *rest, _ in ROWS]
    with caplog.at_level(logging.INFO):
        dataset = load(write(tmp_path, *broken, *ROWS, name="test.tsv"))
    assert [c.id for c in dataset["test"]] == ["d1-4"]
    assert "test.tsv, line 2: movie_dict is not a Python literal" in caplog.text
    assert "1 dialogues without a readable movie_dict" in caplog.text


def test_code_in_a_cell_does_not_run(tmp_path):
    trace = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    assert load(write(tmp_path, *[(*row[:-1], code) for row in ROWS], name="test.tsv"))["test"] == []
    assert not trace.exists()


def test_splits(tmp_path):
    dialogues = [(f"d{number}", *rest) for number in range(60) for _, *rest in ROWS]
    dataset = load(write(tmp_path, *dialogues, name="dev.tsv"))
    assert all(dataset[split] for split in SPLITS)
    assert len({c.cluster for split in SPLITS for c in dataset[split]}) == 60
    write(tmp_path, *[("t", *rest) for _, *rest in ROWS], name="test.tsv")
    assert [c.id for c in load(tmp_path)["test"]] == ["t-4"]
    write(tmp_path, *[("v", *rest) for _, *rest in ROWS], name="train.tsv")
    assert [len(load(tmp_path)[split]) for split in SPLITS] == [1, 60, 1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("d2", 1, "USER", 1, "Hi", "", FILMS), "\"speaker\" must be SEEKER or RECOMMENDER, found str 'USER'"),
        (("d2", 1, "SEEKER", 1, "Hi", ""), "6 cells where the header has 7"),
        (("d2", 1, "SEEKER", 1, "Hi", "", "['Heat']"), '"movie_dict" must be a dict'),
        (("", 1, "SEEKER", 1, "Hi", "", FILMS), '"dialog_id" is blank'),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, expected):
    with pytest.raises(UserError) as error:
        load(write(tmp_path, *ROWS, row))
    assert str(error.value).startswith("train.tsv, line 9: ")
    assert expected in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"holds none of train\.tsv"):
        load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "x.tsv")
    with pytest.raises(UserError, match="column `movie_dict`"):
        load(write(tmp_path, header="dialog_id\tutt_id\tspeaker\ttext\tmovies"))
    (tmp_path / "train.tsv").write_text("")
    with pytest.raises(UserError, match="is empty"):
        load(tmp_path)
    (tmp_path / "train.tsv").write_bytes(b"dialog_id\xff")
    with pytest.raises(UserError, match="column `dialog_id`, found dialog_idÿ"):
        load(tmp_path)


@real_data
def test_the_published_file(caplog):
    with caplog.at_level(logging.INFO):
        dataset = load(DATA / "inspired")
    everything = [c for split in SPLITS for c in dataset[split]]
    assert len({c.cluster for c in everything}) <= 98
    assert "1 dialogues without a readable movie_dict" in caplog.text
    assert all(c.ground_truth and c.messages for c in everything)
    assert all(item in dataset.catalog for c in everything for item in c.ground_truth)
    first = next(c for c in everything if c.cluster == "20191202-103716_425_live.pkl")
    assert first.ground_truth == (Item("Full Metal Jacket", 1987),)
    assert first.messages[-1] == Message("user", "OK, let's hear it")
    assert "QUOTATION_MARK" not in "".join(m.content for c in everything for m in c.messages)
    assert ([len(dataset[split]) for split in SPLITS], len(dataset.catalog)) == ([173, 23, 24], 317)
