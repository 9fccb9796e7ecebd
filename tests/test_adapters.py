import logging
from pathlib import Path

import pytest
from data_files import DATA, real_data, write_catalog, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import examples

from convrec_r1.base.errors import UserError
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.adapters.common import merge_turns, split_by_hash
from convrec_r1.data.adapters.reddit_v2 import RedditV2
from convrec_r1.data.adapters.rows import read_jsonl
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Message
from convrec_r1.lists import Item
from convrec_r1.matching import Folded


def load_jsonl(path: str | Path, catalog: str | Path | None = None) -> Dataset:
    return jsonl.Jsonl(path, catalog).load()


def load_reddit(path: Path, catalog: Path | None = None) -> Dataset:
    return RedditV2(path, Folded(), catalog).load()


# --- rows -----------------------------------------------------------------------------------------------------------


def test_lines_end_at_newlines_only_and_are_counted_with_blank_ones(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes('\ufeff{"a": "one\u2028two"}\r\n\r\n{"a": "é"}'.encode())
    assert [(row.fields["a"], row.where) for row in read_jsonl(path)] == [
        ("one\u2028two", "x.jsonl, line 1"),
        ("é", "x.jsonl, line 3"),
    ]


def test_a_line_of_a_megabyte(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", {"a": "é" * 1_000_000})
    assert len(next(read_jsonl(path)).fields["a"]) == 1_000_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "x.jsonl is empty"),
        (b"\n \n", "x.jsonl is empty"),
        (b"{}\n{\n", "x.jsonl, line 2: not valid JSON"),
        (b"[]\n", "x.jsonl, line 1: each line must be a JSON object {...}, found a list of 0"),
        (b'{}\n{"a": \xff}\n', "x.jsonl, line 2: not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "x.jsonl, line 1: not readable as JSON"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, content, expected):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_jsonl(tmp_path / "x.jsonl"))
    assert expected in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(read_jsonl(tmp_path / "x.jsonl"))
    with pytest.raises(UserError, match="a file is needed"):
        list(read_jsonl(tmp_path))


def test_turns_of_one_role_are_joined_and_blank_ones_left_out():
    turns = [
        ("user", ""),
        ("assistant", " Hi "),
        ("assistant", "there"),
        ("user", " "),
        ("assistant", "?"),
        ("user", "x"),
    ]
    assert merge_turns(turns) == (Message("assistant", "Hi\nthere\n?"), Message("user", "x"))


def test_the_split_by_hash_is_stable_and_near_its_shares():
    splits = [split_by_hash(str(number)) for number in range(5000)]
    assert splits[:8] == ["train", "train", "test", "train", "train", "train", "test", "train"]
    assert splits.count("validation") == pytest.approx(500, abs=70)
    assert splits.count("test") == pytest.approx(500, abs=70)
    assert {split_by_hash(str(number), ("validation",)) for number in range(99)} == {"train", "validation"}
    assert {split_by_hash(str(number), ()) for number in range(99)} == {"train"}


# --- our own schema -------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Something like Alien?"}]
ROW = {"id": "c1", "messages": MESSAGES, "ground_truth": [["Heat", 1995]]}


def test_jsonl_minimal_and_full_rows(tmp_path):
    write_catalog(tmp_path)
    full = {
        **ROW,
        "id": 7,
        "cluster": "thread",
        "ground_truth": [["Heat", "1995"], {"title": "Ulysses"}, "Alien (1979)", ["Ulysses", None]],
        "seen": ["Jumanji"],
        "demonstration": ["Heat (1995)"],
        "split": "test",
        "has_instruction": True,
    }
    dataset = load_jsonl(write_rows(tmp_path / "data.jsonl", {**ROW, "split": "train"}, full))
    messages = (Message("user", "Something like Alien?"),)
    assert dataset["train"] == [Conversation("c1", "c1", messages, (Item("Heat", 1995),))]
    truth = (Item("Heat", 1995), Item("Ulysses"), Item("Alien", 1979), Item("Ulysses"))
    demonstration = (Item("Heat", 1995),)
    assert dataset["test"] == [
        Conversation("7", "thread", messages, truth, ("Jumanji",), demonstration, "test", has_instruction=True)
    ]
    assert dataset["validation"] == []
    assert len(dataset.catalog) == 4


def test_jsonl_folder_takes_the_split_from_the_file_name(tmp_path):
    catalog = write_catalog(tmp_path / "elsewhere")
    for split in SPLITS:
        write_rows(tmp_path / "data" / f"{split}.jsonl", {**ROW, "id": split})
    dataset = load_jsonl(str(tmp_path / "data"), catalog=str(catalog))
    assert {split: [found.id for found in dataset[split]] for split in SPLITS} == {split: [split] for split in SPLITS}


def test_jsonl_without_splits_deals_clusters_out_whole(tmp_path):
    write_catalog(tmp_path)
    rows = [{**ROW, "id": f"{number}", "cluster": f"k{number // 3}"} for number in range(300)]
    dataset = load_jsonl(write_rows(tmp_path / "data.jsonl", *rows))
    clusters = [{found.cluster for found in dataset[split]} for split in SPLITS]
    assert all(clusters)
    assert sum(map(len, clusters)) == len(set.union(*clusters)) == 100
    assert len(clusters[0]) > 60


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"messages": "hello"}, "\"messages\" must be a list of {role, content}, found str 'hello'"),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": None}, '"messages" must be a list of {role, content}, found null'),
        ({"messages": ["hello"]}, '"messages", message 1 must be an object'),
        ({"messages": [*MESSAGES, {"role": "narrator", "content": "x"}]}, 'message 2: "role" must be "user"'),
        (
            {"messages": [{"role": "user", "content": " "}]},
            '"messages" has no message of "user" or "assistant" with text',
        ),
        ({"messages": [{"role": "user", "content": 3}]}, '"content" must be a string or a list of parts, found int 3'),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 'message 1: "role" must be "user" or "assistant" (or'),
        ({"ground_truth": [["Heat", 1995], 3]}, '"ground_truth", entry 2: an item must be'),
        ({"ground_truth": [["Heat", "95a"]]}, '"ground_truth", entry 1: a year must be'),
        ({"ground_truth": {"title": "Heat"}}, '"ground_truth" must be a list of items'),
        ({"demonstration": [["", 1995]]}, '"demonstration", entry 1: the title is blank'),
        ({"seen": "Heat"}, '"seen" must be a list of titles'),
        ({"seen": [["Heat", 1995], 3]}, '"seen", entry 2: an item must be'),
        ({"split": "held"}, "\"split\" must be one of train, validation, test, found str 'held'"),
        ({"split": ["train"]}, '"split" must be one of'),
        ({"split": "test"}, '"split" is test, but the file is the train split'),
        ({"has_instruction": 1}, '"has_instruction" must be true or false'),
        ({"id": ""}, '"id" is blank'),
        ({"id": True}, '"id" must be a string, found true'),
        ({"id": "c0"}, 'the id "c0" was used before (train.jsonl, line 1)'),
    ],
)
def test_a_malformed_row_is_named(tmp_path, change, expected):
    write_catalog(tmp_path)
    write_rows(tmp_path / "train.jsonl", {**ROW, "id": "c0"}, {**ROW, **change})
    with pytest.raises(UserError) as error:
        load_jsonl(tmp_path)
    assert str(error.value).startswith("train.jsonl, line 2: ")
    assert expected in str(error.value)


def test_a_missing_key_lists_those_that_are_there(tmp_path):
    write_rows(tmp_path / "train.jsonl", {"id": "a", "groundtruth": [], "messages": MESSAGES})
    with pytest.raises(
        UserError, match=r'"ground_truth" must be .* found no such key. Keys of this row: id, groundtruth'
    ):
        jsonl.read(tmp_path)


def test_keys_that_are_not_read_are_named(tmp_path, caplog):
    write_rows(tmp_path / "train.jsonl", {**ROW, "demonstrations": []})
    jsonl.read(tmp_path)
    assert "demonstrations" in caplog.text


def test_jsonl_without_data_or_catalog(tmp_path):
    with pytest.raises(UserError, match=r"none of train\.jsonl"):
        load_jsonl(tmp_path)
    folder = tmp_path / "deep" / "deeper"
    write_rows(folder / "train.jsonl", ROW)
    with pytest.raises(UserError, match=r"data\.catalog=FILE"):
        load_jsonl(folder)
    write_catalog(tmp_path / "deep")
    assert len(load_jsonl(folder)["train"]) == 1


words = st.text(min_size=1, max_size=12).filter(str.strip)
titles = words.filter(lambda title: "(" not in title and "\n" not in title)
items = st.builds(Item, titles, st.none() | st.integers(1, 9999))
conversations = st.builds(
    Conversation,
    id=words,
    cluster=words,
    messages=st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), words), min_size=1).map(tuple),
    ground_truth=st.lists(items, min_size=1, max_size=3).map(tuple),
    seen=st.lists(titles.map(str.strip), max_size=3).map(tuple),
    demonstration=st.none() | st.lists(items, max_size=3).map(tuple),
    split=st.sampled_from(SPLITS),
    has_instruction=st.booleans(),
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(conversations, min_size=1, max_size=4, unique_by=lambda conversation: conversation.id))
def test_dump_and_read_give_the_same_back(tmp_path, written):
    path = tmp_path / "new" / "data.jsonl"
    jsonl.dump(written, path)
    assert jsonl.read(path) == written
    assert [entry.name for entry in path.parent.iterdir()] == ["data.jsonl"]


def test_half_a_surrogate_pair_is_dumped_and_read_as_no_character(tmp_path):
    written = [Conversation("a", "a", (Message("user", "broken \ud83d emoji"),), (Item("Heat", 1995),))]
    jsonl.dump(written, tmp_path / "data.jsonl")
    (read,) = jsonl.read(tmp_path / "data.jsonl")
    assert read.messages[0].content == "broken \ufffd emoji"


def test_a_dump_that_fails_leaves_the_old_file(tmp_path):
    def failing():
        yield Conversation("new", "new", (Message("user", "x"),), (Item("Heat", 1995),))
        raise RuntimeError("the source broke")

    path = write_rows(tmp_path / "data.jsonl", ROW)
    with pytest.raises(RuntimeError):
        jsonl.dump(failing(), path)
    assert [found.id for found in jsonl.read(path)] == ["c1"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]


def test_titles_that_no_list_could_name_are_put_right(tmp_path):
    row = {**ROW, "ground_truth": [["The\nHeat ", 2013], ["Heat (1995)", None], [" Heat", 1995]]}
    (found,) = jsonl.read(write_rows(tmp_path / "data.jsonl", row))
    assert found.ground_truth == (Item("The Heat", 2013), Item("Heat", 1995), Item(" Heat", 1995))


# --- Reddit-v2 ------------------------------------------------------------------------------------------------------

REDDIT = {
    "prompt": [{"role": "user", "content": "Recommend.\nUSER: like Alien?\n"}],
    "completion": [{"role": "assistant", "content": "Heat (1995)\nJumanji (2017)"}],
    "seen_titles": ["Alien"],
    "groundtruth_with_release_year": [["Heat", "1995"]],
}


def test_reddit_jsonl(tmp_path, caplog):
    write_catalog(tmp_path)
    other = {**REDDIT, "prompt": [{"role": "user", "content": "other"}], "completion": None, "sample_id": "s9"}
    empty = {**REDDIT, "groundtruth_with_release_year": []}
    write_rows(tmp_path / "jsonl" / "train.jsonl", REDDIT, {**REDDIT, "completion": []}, other, empty)
    with caplog.at_level(logging.INFO):
        dataset = load_reddit(tmp_path / "jsonl")
    first, second, third = dataset["train"]
    assert first.messages == (Message("user", "Recommend.\nUSER: like Alien?\n"),)
    assert first.has_instruction
    assert first.ground_truth == (Item("Heat", 1995),)
    assert first.seen == ("Alien",)
    assert first.demonstration == (Item("Heat", 1995), Item("Jumanji", 2017))
    assert first.cluster == second.cluster != third.cluster
    assert [found.id for found in dataset["train"]] == ["train-1", "train-2", "s9"]
    assert second.demonstration is third.demonstration is None
    assert dataset["test"] == []
    assert "3 conversations, 2 without a demonstration; left out 1 rows" in caplog.text


def test_reddit_arrow_rows_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    bad = {**REDDIT, "groundtruth_with_release_year": [["Heat", "soon"]]}
    datasets.Dataset.from_list([REDDIT, bad]).save_to_disk(str(tmp_path / "train"))
    with pytest.raises(UserError, match='train, row 2: "groundtruth_with_release_year", entry 1: a year must be'):
        load_reddit(tmp_path, catalog=write_catalog(tmp_path))


def test_reddit_problems(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_reddit(tmp_path / "none")
    with pytest.raises(UserError, match=r"data\.catalog=FILE"):
        load_reddit(tmp_path)
    write_catalog(tmp_path)
    with pytest.raises(UserError, match="holds none of train"):
        load_reddit(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a saved dataset"):
        load_reddit(tmp_path)


@real_data
def test_reddit_sample_reads_the_same_from_both_forms():
    arrow, rows = load_reddit(DATA / "reddit_v2" / "arrow"), load_reddit(DATA / "reddit_v2" / "jsonl")
    assert [len(arrow[split]) for split in SPLITS] == [42, 8, 25]
    assert [len({found.cluster for found in arrow[split]}) for split in SPLITS] == [20, 4, 6]
    assert len(arrow.catalog) == 7404
    for split in SPLITS:
        for one, other in zip(arrow[split], rows[split], strict=True):
            fields = ("cluster", "messages", "ground_truth", "seen", "demonstration", "split", "has_instruction")
            assert all(getattr(one, name) == getattr(other, name) for name in fields)
    everything = [found for split in SPLITS for found in rows[split]]
    assert all(item in rows.catalog for found in everything for item in found.ground_truth + found.demonstration)
    assert sorted({len(found.demonstration) for found in everything}) == [19, 20]
    assert rows["train"][0].id == "train_35"
    assert rows["train"][0].ground_truth == (
        Item("American Graffiti", 1973),
        Item("Mad Max", 1979),
        Item("Halloween", 1978),
    )
    assert rows["train"][0].seen == ("The Room",)
