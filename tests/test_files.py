"""Catalogs and metadata in the files that people have: every kind times every other kind, and the shapes of published data."""

# ruff: noqa: E501  rows of published files are long

import bz2
import gzip
import io
import itertools
import json
import lzma
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from data_files import DATA, real_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.base.errors import UserError
from convrec_r1.data import Catalog
from convrec_r1.data.items import TITLES, YEARS, to_item, to_year
from convrec_r1.distill.metadata import Metadata, read_metadata
from convrec_r1.lists import Item

FILMS = [Item("Heat", 1995), Item("Amélie", 2001), Item("'71", 2014), Item("Ulysses")]


def write(folder: Path, content: str | bytes, name: str = "c.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def zipped(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            # Without a date of its own an entry has the time of day, and xdist's workers would collect other test ids.
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-le without a mark": lambda text: text.encode("utf-16-le"),
    "utf-16-be without a mark": lambda text: text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "latin-1": lambda text: text.replace("\u2013", "-").encode("latin-1"),
    "windows-1252": lambda text: text.encode("cp1252"),
    "windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "old mac line ends": lambda text: text.replace("\n", "\r").encode(),
    "gzip": lambda text: gzip.compress(text.encode(), mtime=0),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "zip": lambda text: zipped(text.encode(), "a.csv"),
}
NAMES = [
    ("title", "year"), ("Title", "Year"), ("name", "release_year"), ("movie_title", "title_year"),
    ("primaryTitle", "startYear"), ("Book-Title", "Year-Of-Publication"), ("original_title", "release_date"), ("book_title", "original_publication_year"),
    ("Film Title", "Publication Year"), ("Display title", "Year (first)"),
]  # fmt: skip
YEAR_FORMS = {
    "{}": [1995, 2001, 2014], "{}.0": [1995, 2001, 2014], "{}-12-15": [1995, 2001, 2014], "15-Dec-{}": [1995, 2001, 2014],
    "({})": [1995, 2001, 2014], "Dec {}": [1995, 2001, 2014], "{}–1998": [1995, 2001, 2014], "{}-": [1995, 2001, 2014],  # noqa: RUF001
    "12/15/{}": [1995, 2001, 2014], "{}1215": [1995, 2001, 2014], "{}-12-15T00:00:00Z": [1995, 2001, 2014],
    " {} ": [1995, 2001, 2014], "c. {}": [1995, 2001, 2014], "{} (USA)": [1995, 2001, 2014],
}  # fmt: skip
UNKNOWN = ("", "\\N", "NaN", "nan", "0", "0.0", "None", "N/A", "unknown", "-")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
def test_delimiters_encodings_column_names_and_year_forms(tmp_path, delimiter):
    for encoding, (title, year), form in itertools.product(ENCODINGS, NAMES, YEAR_FORMS):
        unknown = UNKNOWN[len(encoding + title + form) % len(UNKNOWN)]
        rows = [("id", title, year, "note")]
        rows += [(k, film.title, form.format(film.year) if film.year else unknown, "x") for k, film in enumerate(FILMS)]
        text = "\n".join(delimiter.join(map(str, row)) for row in rows) + "\n"
        path = write(tmp_path, ENCODINGS[encoding](text))
        assert list(Catalog.load(path)) == FILMS, (encoding, title, year, form, unknown)


@pytest.mark.parametrize(
    "name", ["c.csv", "c.tsv", "c.txt", "c.dat", "c.tab", "u.item", "c.csv.gz", "c.TSV.GZ", "c.csv.zip"]
)
def test_the_content_says_the_delimiter_not_the_name(tmp_path, name):
    assert list(Catalog.load(write(tmp_path, "title;year\nHeat;1995\n", name))) == [Item("Heat", 1995)]


def test_every_known_name_of_a_column(tmp_path):
    for title in TITLES:
        assert list(Catalog.load(write(tmp_path, f"{title},year\nHeat,1995\n"))) == [Item("Heat", 1995)], title
    for year in YEARS:
        assert list(Catalog.load(write(tmp_path, f"title,{year}\nHeat,1995\n"))) == [Item("Heat", 1995)], year


@pytest.mark.parametrize(
    "value", [None, "", " ", 0, 0.0, "0", "\\N", "NaN", "null", "<NA>", "N/A", "n.d.", "?", float("nan")]
)
def test_unknown_years(value):
    assert to_year(value) is None


@pytest.mark.parametrize(
    "value", [True, "soon", "95a", 1999.5, [1995], {}, "12345", -5, "-750", 10**400, float("inf"), "x" * 99 + " 1995"]
)
def test_years_that_are_none(value):
    with pytest.raises(ValueError, match="a year must be"):
        to_year(value)


@pytest.mark.parametrize(
    ("value", "item"),
    [
        ("Heat (1995)", Item("Heat", 1995)),
        ("Heat (1995 film)", Item("Heat", 1995)),
        ("Fargo (2014– )", Item("Fargo", 2014)),  # noqa: RUF001
        ("Fargo (2014-2020)", Item("Fargo", 2014)),
        ("Kong (2005 video game)", Item("Kong", 2005)),
        (["Heat (1995)", 1995], Item("Heat", 1995)),
        (["Heat (1995)", 1996], Item("Heat", 1995)),
        (["Matrix, The (1999)", None], Item("Matrix, The", 1999)),
        (["Blade Runner 2049", 2017], Item("Blade Runner 2049", 2017)),
        (["1917", 2019], Item("1917", 2019)),
        (["2012 (2009)", 2009], Item("2012", 2009)),
        (["Birds of Prey (and the Emancipation)", 2020], Item("Birds of Prey (and the Emancipation)", 2020)),
        ({"Book-Title": "Emma &amp; Co", "Year-Of-Publication": "1815"}, Item("Emma & Co", 1815)),
        ({"title": None, "original_title": "Heat", "release_date": "1995-12-15"}, Item("Heat", 1995)),
        ({"title": "Heat", "year": None, "release_date": "15-Dec-1995"}, Item("Heat", 1995)),
        ({"title": "Heat", "release_date": 819072000000}, Item("Heat", 1995)),
    ],
)
def test_items(value, item):
    assert to_item(value) == item


# --- published shapes -----------------------------------------------------------------------------------------------------

GENRES_100K = "|".join(["0"] * 6 + ["1"] + ["0"] * 12)
SHAPES = {
    "movies.csv": ("movieId,title,genres\n1,Toy Story (1995),Adventure|Comedy\n2,\"American President, The (1995)\",(no genres listed)\n"
                   "3,Babylon 5,Sci-Fi\n", [Item("Toy Story", 1995), Item("American President, The", 1995), Item("Babylon 5")]),
    "movies.dat": ("1::Toy Story (1995)::Animation|Children's\n2::Matrix, The (1999)::Action\n",
                   [Item("Toy Story", 1995), Item("Matrix, The", 1999)]),
    "u.item": (f"1|Toy Story (1995)|01-Jan-1995||http://x/Toy%20Story|{GENRES_100K}\n"
               f"2|Misérables, Les (1995)|01-Jan-1995||http://x|{GENRES_100K}\n267|unknown||||{GENRES_100K}\n",
               [Item("Toy Story", 1995), Item("Misérables, Les", 1995), Item("unknown")]),
    "title.basics.tsv": ("tconst\ttitleType\tprimaryTitle\toriginalTitle\tisAdult\tstartYear\tendYear\truntimeMinutes\tgenres\n"
                         "tt1\tmovie\t\"Heat\tHeat\t0\t1995\t\\N\t170\tCrime,Drama\ntt2\tmovie\t\"Rome\" is burning\tx\t0\t\\N\t\\N\t9\t\\N\n",
                         [Item('"Heat', 1995), Item('"Rome" is burning')]),
    "BX-Books.csv": ('"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher"\n'
                     '"0195153448";"Classical Mythology";"Mark Morford";"2002";"Oxford"\n'
                     '"0002005018";"The \\"Real\\" Life &amp; Times";"R. Wright";"0";"Harper"\n"1";"Fantôme; ou non";"X";"1991";"Y"\n',
                     [Item("Classical Mythology", 2002), Item('The "Real" Life & Times'), Item("Fantôme; ou non", 1991)]),
    "movies_metadata.csv": ("adult,genres,id,original_title,overview,release_date,title\n"
                            "False,\"[{'id': 16, 'name': 'Animation'}]\",862,Toy Story,\"Led by Woody,\nAndy's toys\",1995-10-30,Toy Story\n"
                            "False,[],9,Heat,x,,Heat\n", [Item("Toy Story", 1995), Item("Heat")]),
    "books.csv": ("book_id,authors,original_publication_year,original_title,title\n"
                  "1,Suzanne Collins,2008.0,The Hunger Games,\"The Hunger Games (The Hunger Games, #1)\"\n2,Homer,-750.0,,The Iliad\n"
                  "3,Jane Austen,1813.0,Pride,Pride\n4,Jane Austen,1815.0,Emma,Emma\n",
                  [Item("The Hunger Games (The Hunger Games, #1)", 2008), Item("The Iliad"), Item("Pride", 1813), Item("Emma", 1815)]),
    "movie_metadata.csv": ("color,director_name,movie_title,plot_keywords,title_year\nColor,Michael Mann,Heat\u00a0,heist|bank,1995.0\n",
                           [Item("Heat", 1995)]),
    "goodreads_books.json": ('{"book_id": "5", "title": "Emma", "publication_year": "2003", "popular_shelves": []}\n'
                             '{"book_id": "6", "title": "", "publication_year": ""}\n{"book_id": "7", "title": "Dune", "publication_year": ""}\n',
                             [Item("Emma", 2003), Item("Dune")]),
    "tmdb.json": (json.dumps({"page": 1, "results": [{"id": 1, "title": "Heat", "release_date": "1995-12-15"}], "total_pages": 1}),
                  [Item("Heat", 1995)]),
    "wikidata.csv": ("film,filmLabel,publicationDate\nhttp://www.wikidata.org/entity/Q1,Heat,1995-12-15T00:00:00Z\n"
                     "http://www.wikidata.org/entity/Q2,Emma,\n", [Item("Heat", 1995), Item("Emma")]),
    "excel.csv": ("sep=;\r\nTitle;Year;;\r\nHeat;1995;;\r\n", [Item("Heat", 1995)]),
    "pandas.csv": (",title,year\n0,Heat,1995.0\n1,Emma,\n", [Item("Heat", 1995), Item("Emma")]),
    "r.csv": ('"title","year"\n"1","Heat",1995\n"2","Emma",NA\n', [Item("Heat", 1995), Item("Emma")]),
    "headless.csv": ("Heat,1995\n\"10,000 BC\",2008\n", [Item("Heat", 1995), Item("10,000 BC", 2008)]),
    "lines.txt": ("Heat (1995)\n10,000 BC (2008)\n", [Item("Heat", 1995), Item("10,000 BC", 2008)]),
    "one.txt": ("title\nHeat\nEmma\n", [Item("Heat"), Item("Emma")]),
    "quoted.tsv": ('title\tyear\n"He said ""no""\tand left"\t1995\n', [Item('He said "no" and left', 1995)]),
    "strings.json": ('["Heat (1995)", "Emma"]', [Item("Heat", 1995), Item("Emma")]),
    "by_id.json": ('{"1": "Heat (1995)", "2": "Emma"}', [Item("Heat", 1995), Item("Emma")]),
    "to_id.json": ('{"Heat (1995)": 17, "Emma": 4}', [Item("Heat", 1995), Item("Emma")]),
    "to_name.json": ('{"Heat (1995)": "tt0113277", "Emma": "tt0116191"}', [Item("Heat", 1995), Item("Emma")]),
    "to_year.json": ('{"Heat": 1995, "Emma": null}', [Item("Heat", 1995), Item("Emma")]),
    "to_metadata.json": ('{"Heat (1995)": {"genre": ["crime"]}, "Emma": {}}', [Item("Heat", 1995), Item("Emma")]),
    "id_to_metadata.json": ('{"0": {"title": "Heat", "year": 1995}}', [Item("Heat", 1995)]),
    "columns.json": ('{"title": {"0": "Heat", "1": "Emma"}, "year": {"0": 1995.0, "1": null}}', [Item("Heat", 1995), Item("Emma")]),
    "split.json": ('{"columns": ["title", "year"], "index": [0], "data": [["Heat", 1995]]}', [Item("Heat", 1995)]),
    "lists.json": ('{"title": ["Heat"], "year": [1995]}', [Item("Heat", 1995)]),
    "under_a_key.json": ('{"movies": ["Heat (1995)"]}', [Item("Heat", 1995)]),
    "lines.json": ('{"title": "Heat", "year": NaN}\n{"title": "Emma"}\n', [Item("Heat"), Item("Emma")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "gzip"])
def test_published_shapes(tmp_path, name, encoding):
    text, items = SHAPES[name]
    path = write(tmp_path, ENCODINGS[encoding](text), f"{name}.gz" if encoding == "gzip" else name)
    assert [Item(item.title.strip(), item.year) for item in Catalog.load(path)] == items


def test_parquet(tmp_path):
    pd.DataFrame({"title": ["Heat", "Emma"], "release_date": pd.to_datetime(["1995-12-15", None])}).astype(
        {"release_date": str}
    ).to_parquet(tmp_path / "c.parquet")
    assert list(Catalog.load(tmp_path / "c.parquet")) == [Item("Heat", 1995), Item("Emma")]
    (tmp_path / "d.parquet").write_bytes(b"PAR1x")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Catalog.load(tmp_path / "d.parquet")


# --- what is told ---------------------------------------------------------------------------------------------------------


def test_what_is_left_out_or_doubtful_is_told_in_one_line(tmp_path, caplog):
    rows = [f"{k},Film {k},{1900 + k},x" for k in range(100)]
    rows += ["100,Film 1,1901,x", "101,,1999,x", "102,Undated,soon,x", "103,Amélie (2001),2002,x"]
    path = write(tmp_path, "id,title,year,note\n" + "\n".join(rows) + "\n104,a,b,c,d\n", encoding="latin-1")
    assert len(Catalog.load(path)) == 102
    (record,) = caplog.records
    for told in (
        "c.csv: 102 items",
        "1 line is not UTF-8 and was read as Windows-1252 (first: c.csv, line 105)",
        "1 row without a title was left out (first: c.csv, line 103)",
        "1 year that cannot be read was taken as unknown (first: c.csv, line 104: a year must be",
        "1 title has another year than the year column (the title's counts) (first: c.csv, line 105: Amélie (2001), 2002)",
        "1 row that does not fit the header was left out (first: c.csv, line 106)",
        "2 columns are not read: id, note",
        "1 item is repeated (first: c.csv, line 102: Film 1 (1901))",
    ):
        assert told in record.getMessage()


def test_a_column_that_only_its_content_tells_is_named(tmp_path, caplog):
    path = write(tmp_path, "id,what\n1,Heat (1995)\n2,Emma (1815)\n")
    assert list(Catalog.load(path)) == [Item("Heat", 1995), Item("Emma", 1815)]
    assert "1 column was taken for the titles: 'what'" in caplog.text


def test_a_clean_catalog_says_nothing(tmp_path, caplog):
    Catalog.load(write(tmp_path, "title,year\nHeat,1995\nEmma,\n"))
    assert not caplog.records


def test_damaged_utf_8_is_not_taken_for_windows_1252(tmp_path, caplog):
    path = write(tmp_path, "title,year\nAmélie \udcff,2001\n".encode("utf-8", "surrogateescape"))
    assert list(Catalog.load(path)) == [Item("Amélie \ufffd", 2001)]
    assert "broken characters" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("title,year\n" + "Heat,x,1995\n" * 12, "12 faults, the first 10:\n  c.csv, line 2: 3 cells where the header has 2."),
        ("title\nHeat,1995\nEmma,1815\n", "2 faults:\n  c.csv, line 2: 2 cells where the header has 1"),
        ("title,year\nHeat,1995\nEmma\n", "c.csv, line 3: 1 cells where the header has 2"),
        ("title,year\nHeat,soon\nEmma,later\nPari,1995\n", "found 'soon'. In total 2 of 3 years of the file are none."),
        ("a,b\nHeat,x\nEmma,y\n", "c.csv: the first row must name the columns, one of them `title` (and one `year` if"),
        (zipped(b"title\n", "a.csv", "b.csv"), "c.csv holds 2 files (a.csv, b.csv). Unpack it and name one of them."),
        (gzip.compress(b"title\nHeat\n", mtime=0)[:-9], "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_lines(tmp_path, content, says):
    with pytest.raises(UserError) as error:
        Catalog.load(write(tmp_path, content))
    assert says in str(error.value)
    assert str(error.value).count("line") <= 10


def test_ten_faults_of_json_lines_at_once(tmp_path):
    lines = ['{"title": "Heat"}', *['{"title": 3}'] * 20]
    with pytest.raises(
        UserError, match=r"(?s)20 faults, the first 10:.*c\.jsonl, line 2: .*c\.jsonl, line 11: "
    ) as error:
        Catalog.load(write(tmp_path, "\n".join(lines), "c.jsonl"))
    assert "line 12" not in str(error.value)


# --- metadata -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("movies.dat", "1::Heat (1995)::Action|Crime\n", Metadata("Heat", 1995, ("Action", "Crime"))),
        ("u.item", f"1|Heat (1995)|01-Jan-1995||http://x|{GENRES_100K}\n", Metadata("Heat", 1995, ("Crime",))),
        ("movies.csv", "movieId,title,genres\n1,Heat (1995),(no genres listed)\n", Metadata("Heat", 1995)),
        ("title.basics.tsv", "tconst\tprimaryTitle\tstartYear\tgenres\ntt1\tHeat\t1995\tCrime,Drama\ntt2\tx\t1\t\\N\n",
         Metadata("Heat", 1995, ("Crime", "Drama"))),
        ("tmdb.csv", "title,release_date,genres,keywords,overview\n"
         'Heat,1995-12-15,"[{""id"": 80, ""name"": ""Crime""}]","[{\'id\': 1, \'name\': \'heist\'}]",A thief.\n',
         Metadata("Heat", 1995, ("Crime",), ("heist",), (), "A thief.")),
        ("tmdb.json", json.dumps({"results": [{"title": "Heat", "release_date": "1995-12-15", "genres": [{"id": 80, "name": "Crime"}],
                                               "overview": None}]}), Metadata("Heat", 1995, ("Crime",))),
        ("bx.csv", '"Book-Title";"Book-Author";"Year-Of-Publication"\n"Emma";"Jane Austen";"1815"\n',
         Metadata("Emma", 1815, (), (), ("Jane Austen",))),
        ("books.jsonl", '{"title": "Emma", "publication_year": "1815", "authors": [{"author_id": "1", "role": ""}], "description": "x"}\n',
         Metadata("Emma", 1815, plot="x")),
        ("by_title.json", '{"Heat (1995)": {"genre": "crime; drama"}}', Metadata("Heat", 1995, ("crime", "drama"))),
        ("semicolons.csv", "title;year;tags\nHeat;1995;heist, bank\n", Metadata("Heat", 1995, (), ("heist", "bank"))),
    ],
)  # fmt: skip
def test_metadata_in_the_files_that_catalogs_come_in(tmp_path, name, content, expected):
    assert next(iter(read_metadata(write(tmp_path, content, name)).values())) == expected


# --- properties -----------------------------------------------------------------------------------------------------------

titles = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20
).filter(
    lambda title: title.strip() and "&" not in title and not title.rstrip().endswith(")") and title.strip() != "\\N"
)
catalogs = st.lists(st.tuples(titles, st.none() | st.integers(1000, 2100)), min_size=1, max_size=8)


def expected(rows) -> list[Item]:
    return list(Catalog(Item(" ".join(title.split()), year) for title, year in rows))


def as_table(rows, path: Path, **options) -> Path:
    pd.DataFrame(rows, columns=["title", "year"]).astype({"year": "Int64"}).to_csv(path, index=False, **options)
    return path


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    catalogs, st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from([0, 1, 2])
)
def test_a_table_that_pandas_writes_is_read_as_it_was(tmp_path, rows, delimiter, encoding, quoting):
    path = as_table(rows, tmp_path / "c.csv", sep=delimiter, encoding=encoding, quoting=quoting)
    assert list(Catalog.load(path)) == expected(rows)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogs, st.sampled_from(["records", "columns", "index", "split", "table", "lines"]))
def test_json_that_pandas_writes_is_read_as_it_was(tmp_path, rows, orient):
    path = tmp_path / "c.json"
    frame = pd.DataFrame(rows, columns=["title", "year"]).astype({"year": "Int64"})
    frame.to_json(path, **({"orient": "records", "lines": True} if orient == "lines" else {"orient": orient}))
    assert list(Catalog.load(path)) == expected(rows)


@real_data
@pytest.mark.parametrize("file", ["reddit_v2/catalog.csv", "redial/movies.jsonl", "opendialkg/items.jsonl"])
def test_real_catalogs_survive_every_table(tmp_path, file):
    items = list(Catalog.load(DATA / file))
    for delimiter, quoting in itertools.product(",;\t|", (0, 1)):
        assert list(Catalog.load(as_table(items, tmp_path / "c.csv", sep=delimiter, quoting=quoting))) == items
    written = "title::year\n" + "".join(f"{title}::{year or ''}\n" for title, year in items)
    assert list(Catalog.load(write(tmp_path, written, "c.dat"))) == items
