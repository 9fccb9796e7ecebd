"""Files of items' metadata: every form, every fault named by its row."""

import json

import pytest

from convrec_r1.base.errors import UserError
from convrec_r1.distill.metadata import Metadata, key, read_metadata
from convrec_r1.lists import Item

HEAT = Metadata("Heat", 1995, ("crime", "drama"), ("heist",), ("Michael Mann", "Al Pacino"), "A thief and a detective.")


def test_the_text_that_is_embedded():
    assert HEAT.text() == "Heat (1995)\ncrime, drama\nheist\nMichael Mann, Al Pacino\nA thief and a detective."
    assert Metadata("Heat").text() == "Heat"


def test_every_form_says_the_same(tmp_path):
    row = {"name": "Heat (1995)", "Genre": ["crime", "drama"], "keywords": "heist", "director": "Michael Mann",
           "writer": ["Michael Mann"], "star": "Al Pacino", "overview": "A thief and\na detective.", "id": 7}  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([row]))
    (tmp_path / "c.csv").write_text(
        "title,year,genres,tags,directors,cast,plot\n"
        'Heat,1995,crime|drama,heist,"[""Michael Mann""]",Al Pacino,A thief and a detective.\n'
    )
    for name in ("a.jsonl", "b.json", "c.csv"):
        assert read_metadata(tmp_path / name) == {("heat", 1995): HEAT}
    assert key(Item("HEAT ", 1995)) == ("heat", 1995)


def test_of_rows_for_one_item_the_first_counts(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"title": "Heat", "year": 1995, "plot": "one"}\n{"title": "heat", "year": 1995, "plot": "two"}\n')
    assert read_metadata(file)["heat", 1995].plot == "one"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.xlsx", "x", r"Save the sheet as CSV"),
        ("m.jsonl", '{"title": "Heat"}\n{"title": 3}\n', "line 2"),
        ("m.jsonl", '{"title": "Heat", "genre": [1]}\n', '"genre", entry 1'),
        ("m.jsonl", '{"title": "Heat", "plot": ["x"]}\n', '"plot"'),
        ("m.jsonl", "", "is empty"),
        ("m.json", "[]", "describes no items"),
        ("m.json", "{}", "describes no items"),
        ("m.json", "3", "must be a list of items"),
        ("m.json", "[3]", "item 1"),
        ("m.csv", "title,plot\nHeat,a,b\n", "3 cells where the header has 2"),
        ("m.csv", "title,genres\nHeat,[broken]\n", "looks like a list"),
    ],
)
def test_faults_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_metadata(tmp_path / name)
    with pytest.raises(UserError, match="nowhere"):
        read_metadata(tmp_path / "nowhere.jsonl")
