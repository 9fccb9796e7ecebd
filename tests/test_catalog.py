import json
import logging
import pickle
from pathlib import Path

import pytest

from convrec_r1.base.errors import UserError
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.unpickle import load_plain
from convrec_r1.lists import Item

SHARED = Path(__file__).parents[2] / "shared"
real_data = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="needs the research samples in ../shared/data, which are not in the project"
)
FILMS = [Item("Heat", 1995), Item("10,000 BC", 2008), Item("Amélie", 2001)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_membership_folds_the_title_and_compares_the_year():
    catalog = Catalog(FILMS)
    assert Item("  heat ", 1995) in catalog
    assert ("HEAT", 1995) in catalog
    assert Item("Heat", 1996) not in catalog
    assert Item("Heat", None) not in catalog
    assert Item("Heat 2", 1995) not in catalog


def test_an_item_without_a_year_is_one_of_its_own():
    catalog = Catalog([Item("Ulysses"), Item("Heat", 1995)])
    assert Item("ulysses") in catalog
    assert Item("Ulysses", 1922) not in catalog
    assert catalog.has_yearless
    assert not Catalog(FILMS).has_yearless


def test_iteration_keeps_the_order_and_the_first_spelling():
    catalog = Catalog([Item("b", 2000), Item("A", 2000), Item("B ", 2000), Item("a", 2001)])
    assert list(catalog) == [Item("b", 2000), Item("A", 2000), Item("a", 2001)]
    assert len(catalog) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", 'title,year\nHeat,1995\n"10,000 BC",2008\nAmélie,2001\n'),
        ("bom.csv", '\ufeffTitle,Year\r\nHeat,1995\r\n\r\n"10,000 BC",2008\r\nAmélie,2001'),
        ("wide.CSV", 'id,year,title,genre\n1,1995.0, Heat ,crime\n2,2008,"10,000  BC",\n3,2001,Amélie,x\n'),
        ("pairs.json", json.dumps([["Heat", 1995], ["10,000 BC", "2008"], ["Amélie", 2001]])),
        (
            "mixed.json",
            json.dumps(["Heat (1995)", {"title": "10,000 BC", "year": 2008.0}, {"title": "Amélie (2001)", "year": ""}]),
        ),
        ("c.jsonl", '{"title": "Heat", "year": 1995}\n\n{"name": "10,000 BC  (2008)", "genre": []}\r\n"Amélie (2001)"'),
        ("c.pkl", pickle.dumps([("Heat", 1995), ("10,000 BC", "2008"), ["Amélie", 2001]])),
        ("old.pkl", pickle.dumps(FILMS[:0] + [tuple(film) for film in FILMS], protocol=0)),
    ],
)
def test_every_form_reads_the_same(tmp_path, name, content):
    assert list(Catalog.load(write(tmp_path / name, content))) == FILMS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "title\nUlysses\n"),
        ("d.csv", "title,year\nUlysses,\n"),
        ("c.json", '[["Ulysses", null]]'),
        ("c.jsonl", '{"title": "Ulysses"}'),
        ("c.pkl", pickle.dumps([("Ulysses", None)])),
    ],
)
def test_years_are_optional(tmp_path, name, content):
    assert list(Catalog.load(str(write(tmp_path / name, content)))) == [Item("Ulysses", None)]


def test_rows_with_a_year_and_no_title_are_left_out_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "c.jsonl", '{"name": "Heat (1995)"}\n{"name": "(2015)"}\n')
    with caplog.at_level(logging.WARNING):
        assert list(Catalog.load(path)) == [Item("Heat", 1995)]
    assert "c.jsonl, line 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.doc", "Heat", "found .doc"),
        ("c.xlsx", "Heat", "Save the sheet as CSV"),
        ("c.txt", "Heat", "the first row must name the columns"),
        ("c", "Heat", "no extension"),
        ("c.csv", "", "no items"),
        ("c.csv", "title,year\n", "no items"),
        ("c.csv", "a,b\nHeat,x\n", "c.csv: the first row must name the columns, one of them `title`"),
        ("c.csv", "title,year\nHeat,1995\n10,000 BC,2008\n", "c.csv, line 3: 3 cells where the header has 2"),
        ("c.csv", "title,year\nHeat,soon\n", "c.csv, line 2: a year must be"),
        ("c.csv", "title,year\n ,1995\n", "no items (1 row without a title was left out (first: c.csv, line 2))"),
        ("c.csv", 'title,year\n"Heat,1995\n', "not valid CSV"),
        ("c.csv.gz", b"\x1f\x8bxx", "cannot be read"),
        ("c.json", "[", "not valid JSON"),
        ("c.json", "{}", "no items"),
        ("c.json", '{"Heat": [1995, "crime"], "Ronin": []}', "id -> title, or title -> metadata; found an object"),
        ("c.json", "[]", "no items"),
        ("c.json", '["Heat (1995)", 7]', "c.json, item 2: an item must be"),
        ("c.json", '[["Heat", true]]', "c.json, item 1: a year must be"),
        ("c.json", '[["Heat"]]', "found a list of 1"),
        ("c.json", "[" * 100_000, "not readable as JSON"),
        ("c.jsonl", "", "c.jsonl is empty"),
        ("c.jsonl", '{"title": "Heat"}\n{"title": 3}\n', "c.jsonl, line 2: a title must be a string"),
        ("c.jsonl", '{"tilte": "Heat"}\n', "c.jsonl, line 1: an item must be"),
        ("c.jsonl", '\n\n{"title": "He', "c.jsonl, line 3: not valid JSON"),
        ("c.pkl", pickle.dumps(3), "must be a list of items"),
        ("c.pkl", pickle.dumps([("Heat", "x")]), "c.pkl, item 1: a year must be"),
        ("c.pkl", b"", "not a readable pickle"),
        ("c.pkl", b"\x80\x04nonsense", "not a readable pickle"),
        ("c.pkl", pickle.dumps(FILMS), "convrec_r1.lists.item.Item"),
    ],
)
def test_a_catalog_that_cannot_be_used_says_where_and_why(tmp_path, name, content, expected):
    with pytest.raises(UserError) as error:
        Catalog.load(write(tmp_path / name, content))
    assert expected in str(error.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Catalog.load(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is not a file"):
        Catalog.load(tmp_path / "folder.csv")


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


class Evaluated:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self):
        return (eval, (self.code,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, protocol):
    trace = tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w')"
    # The attack works on a plain unpickler, or this test would show nothing.
    pickle.loads(pickle.dumps(Evaluated(code), protocol)).close()
    assert trace.exists()
    trace.unlink()
    path = write(tmp_path / "c.pkl", pickle.dumps([("Heat", 1995), Evaluated(code)], protocol))
    with pytest.raises(UserError, match=r"c\.pkl is refused: its pickle names .*eval"):
        Catalog.load(path)
    path = write(tmp_path / "d.pkl", pickle.dumps(Malicious(trace), protocol))
    with pytest.raises(UserError, match="is refused"):
        load_plain(path)
    assert not trace.exists()


def test_a_pickle_that_refers_outside_is_refused(tmp_path):
    with pytest.raises(UserError, match="outside the file"):
        load_plain(write(tmp_path / "c.pkl", b"Psomewhere\n."))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_survives(tmp_path, protocol):
    data = {"a": [1, 2.5, None, True, "é", 10**40], "b": ({1, 2}, frozenset("x")), "c": bytearray(b"")}
    assert load_plain(write(tmp_path / "x.pkl", pickle.dumps(data, protocol))) == data


@real_data
def test_the_released_pickle_and_the_csv_file_agree():
    folder = SHARED / "data" / "reddit_v2"
    released, table = Catalog.load(folder / "gt_catalog.pkl"), Catalog.load(folder / "catalog.csv")
    assert len(released) == len(table) == 7404
    assert list(released) == list(table)
    assert Item("10,000 BC", 2008) in table
    assert Item("'71", 2014) in table
    assert not table.has_yearless


@real_data
def test_redial_metadata_is_a_catalog():
    catalog = Catalog.load(SHARED / "data" / "redial" / "movies.jsonl")
    assert len(catalog) == 6574
    assert sum(item.year is None for item in catalog) == 567
    assert Item("Pari", 1995) in catalog
    assert Item("Zootopia") in catalog
