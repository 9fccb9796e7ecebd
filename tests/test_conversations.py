"""Conversations as chat APIs and datasets write them, and what is reported when they are loaded."""

import gzip
import json
import logging

import numpy as np
import pytest
from data_files import write_catalog, write_rows
from hypothesis import given
from hypothesis import strategies as st

from convrec_r1.base.errors import UserError
from convrec_r1.data import SPLITS, Catalog, Conversation, Dataset, Message
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.adapters.base import Adapter
from convrec_r1.data.adapters.common import ROLES
from convrec_r1.data.audit import Audit
from convrec_r1.data.load import sample
from convrec_r1.lists import Item
from convrec_r1.matching import Folded, Matching, Normalised

ASK, SAY = Message("user", "Like Ronin?"), Message("assistant", "Which kind?")
ROW = {"id": "a", "messages": [{"role": "user", "content": "Like Ronin?"}], "ground_truth": [["Heat", 1995]]}

CONTENTS = {
    "a string": lambda text: text,
    "parts": lambda text: [{"type": "text", "text": text}],
    "parts of the responses API": lambda text: [{"type": "input_text", "text": text}],
    "strings in a list": lambda text: [text],
    "parts with an image": lambda text: [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": text},
    ],
    "an object with parts": lambda text: {"content_type": "text", "parts": [text]},
    "an object": lambda text: {"type": "text", "text": text},
}
LEFT_OUT = [
    {"role": "system", "content": "You recommend films."},
    {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "tool", "content": "{}", "tool_call_id": "x"},
    {"role": "function", "name": "search", "content": "[]"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "function": {"name": "search", "arguments": "{}"}}],
    },
    {"role": "assistant", "content": []},
    {"role": "assistant", "content": " \n"},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    {"from": "system", "value": "You recommend films."},
    {"role": "assistant", "tool_calls": []},
]


def read(tmp_path, *rows, name="train.jsonl"):
    return jsonl.read(write_rows(tmp_path / name, *rows))


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("keys", ["role content", "from value", "speaker text", "author utterance"])
def test_every_role_under_every_key_with_every_content(tmp_path, content, keys):
    who, what = keys.split()
    for role, meaning in ROLES.items():
        for spelled in (role, role.upper(), role.capitalize()):
            messages = [{who: spelled, what: CONTENTS[content]("Like Ronin?")}]
            (found,) = read(tmp_path, {**ROW, "messages": messages})
            assert found.messages == (Message(meaning, "Like Ronin?"),)


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation", "dialogue", "dialog", "turns"])
def test_every_name_of_the_messages(tmp_path, key):
    row = {name: value for name, value in ROW.items() if name != "messages"}
    (found,) = read(
        tmp_path, {**row, key: [{"from": "human", "value": "Like Ronin?"}, {"from": "gpt", "value": "Which kind?"}]}
    )
    assert found.messages == (ASK, SAY)


@pytest.mark.parametrize("turn", LEFT_OUT, ids=str)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_cannot_be_used_is_left_out_counted_and_told(tmp_path, caplog, turn, place):
    messages = [{"role": "user", "content": "Like Ronin?"}, {"role": "assistant", "content": "Which kind?"}]
    messages.insert(place, turn)
    (found,) = read(tmp_path, {**ROW, "messages": messages})
    assert found.messages == (ASK, SAY)
    assert "left out (first: train.jsonl, line 1)" in caplog.text
    with pytest.raises(UserError, match='"messages" has no message of "user" or "assistant" with text'):
        read(tmp_path, {**ROW, "messages": [turn]})


def test_rows_without_ground_truth_are_left_out_and_a_file_of_them_is_refused(tmp_path, caplog):
    empty = {**ROW, "id": "b", "ground_truth": []}
    assert [found.id for found in read(tmp_path, ROW, empty)] == ["a"]
    assert (
        "1 row without ground truth was left out, as no list can be right (first: train.jsonl, line 2)" in caplog.text
    )
    with pytest.raises(UserError, match="has no conversation that can be used"):
        read(tmp_path, empty)


@pytest.mark.parametrize("form", ["Heat", "Heat (1995)", ["Heat", 1995], ["Heat", "1995"], ["Heat", None], {"title": "Heat"},
                                  {"name": "Heat (1995)"}, {"title": "Heat", "year": 1995}])  # fmt: skip
def test_every_form_of_a_seen_title_and_of_a_truth(tmp_path, form):
    (found,) = read(tmp_path, {**ROW, "ground_truth": [form], "seen": [form, "", None]})
    assert found.seen == ("Heat",)
    assert found.ground_truth[0].title == "Heat"


def test_a_row_without_id_is_named_by_its_place(tmp_path):
    row = {name: value for name, value in ROW.items() if name != "id"}
    assert [found.id for found in read(tmp_path, row, row)] == ["train.jsonl-1", "train.jsonl-2"]


def test_ten_faults_are_told_at_once_with_their_lines(tmp_path):
    rows = [ROW, *[{**ROW, "id": f"x{k}", "messages": 3} for k in range(11)], {**ROW, "id": "y", "ground_truth": 3}]
    path = write_rows(tmp_path / "train.jsonl", *rows)
    path.write_text(path.read_text() + "{broken\n[]\n")
    with pytest.raises(UserError) as error:
        jsonl.read(path)
    assert str(error.value).startswith('14 faults, the first 10:\n  train.jsonl, line 2: "messages" must be')
    assert "line 11" in str(error.value)
    assert "line 12" not in str(error.value)


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.json", "train.json.gz", "train.parquet"])
def test_every_kind_of_file(tmp_path, name):
    rows = [ROW, {**ROW, "id": "b", "seen": ["Ronin"]}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    if name.endswith("parquet"):
        import pandas as pd

        pd.DataFrame([{**row, "ground_truth": [{"title": "Heat", "year": 1995}]} for row in rows]).to_parquet(
            tmp_path / name
        )
    else:
        content = json.dumps(rows).encode() if "json." in name or name.endswith("json") else lines
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = jsonl.read(tmp_path)
    assert [(c.id, c.messages, c.ground_truth, c.seen) for c in found] == [
        ("a", (ASK,), (Item("Heat", 1995),), ()),
        ("b", (ASK,), (Item("Heat", 1995),), ("Ronin",)),
    ]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_what_people_call_the_splits(tmp_path, name):
    write_rows(tmp_path / f"{name}.jsonl", {**ROW, "split": name})
    assert [found.split for found in jsonl.read(tmp_path)] == ["validation"]


# --- a published prompt ---------------------------------------------------------------------------------------------------

SPOKEN = (Message("user", "Like Ronin?"), Message("assistant", "Which kind?"), Message("user", "Heists."))
PUBLISHED = {
    "one message": [("user", "Name 20. Here is the conversation: USER: Like Ronin? SYSTEM: Which kind? USER: Heists.")],
    "a system's message": [("system", "Name 20 films."), *[(m.role, m.content) for m in SPOKEN]],
    "a first message that says so": [("user", "Name 20. Here is the conversation: USER: Like Ronin?"),
                                     ("assistant", "Which kind?"), ("user", "Heists.")],
    "a last message that says so": [("system", "You know films."),
                                    ("user", "Here is the conversation:\nUSER: Like Ronin?\nSYSTEM:Which kind?\nUSER:Heists.")],
    "plain turns": [(m.role, m.content) for m in SPOKEN],
}  # fmt: skip


@pytest.mark.parametrize("form", PUBLISHED)
def test_a_published_prompt_keeps_all_its_messages(tmp_path, form, caplog):
    messages = [{"role": role, "content": content} for role, content in PUBLISHED[form]]
    (found,) = read(tmp_path, {**ROW, "messages": messages, "has_instruction": True})
    assert [(m.role, m.content) for m in found.messages] == PUBLISHED[form]
    assert Adapter.without_instruction(jsonl.Jsonl(tmp_path), found).messages == SPOKEN
    jsonl.dump([found], tmp_path / "again.jsonl")
    assert jsonl.read(tmp_path / "again.jsonl") == [found]
    assert not caplog.records


# --- what is reported about a dataset -------------------------------------------------------------------------------------


HEAT = (Item("Heat", 1995),)


def talk(name, *messages, cluster="", truths=HEAT, split="train", published=False) -> Conversation:
    said = messages or (Message("user", name),)
    return Conversation(name, cluster or name, said, tuple(truths), split=split, has_instruction=published)


def dataset(train=(), validation=(), test=()) -> Dataset:
    splits = dict(zip(SPLITS, map(list, (train, validation, test)), strict=True))
    return Dataset(Catalog([Item("Heat", 1995)]), splits)


def audit(data: Dataset) -> Audit:
    found = Audit()
    for split in SPLITS:
        for conversation in data[split]:
            found.add(conversation, split)
    return found


def leaks(data: Dataset) -> list[str]:
    return audit(data).leaks()


def endings(data: Dataset) -> list[str]:
    return audit(data).endings()


def once(match: Matching, *truths: Item) -> tuple[tuple[Item, ...], list[str]]:
    """The ground truths that stay, and what is said of the others."""
    found = Audit()
    return found.truths_once(talk("a", truths=truths), match).ground_truth, found.notes()


def test_splits_that_share_clusters_texts_or_answers_are_told():
    assert leaks(dataset([talk("a")], [talk("b")], [talk("c")])) == []
    (note,) = leaks(dataset([talk("a", cluster="x")], test=[talk("b", cluster="x")]))
    assert note.startswith(
        "test shares 1 clusters and the text of 0 conversations with train (0 with the same ground truth)"
    )
    one, other = talk("a", ASK), talk("b", ASK, truths=[Item("Ronin", 1998)])
    (note,) = leaks(dataset([one], [other]))
    assert note.startswith("validation shares 0 clusters and the text of 1 conversations with train (0 with")
    assert "(1 with the same ground truth)" in leaks(dataset([one], [talk("b", ASK)]))[0]
    assert len(leaks(dataset([one], [talk("b", ASK)], [talk("c", ASK)]))) == 3


def test_conversations_that_end_with_the_recommender_are_told():
    assert endings(dataset([talk("a", ASK), talk("b", ASK, SAY, ASK)])) == []
    (note,) = endings(dataset([talk("a", ASK, SAY), talk("b", ASK)]))
    assert note.startswith("1 of 2 conversations end with the recommender's turn")
    _, told = endings(dataset([talk("a", ASK, Message("assistant", "Try Heat (1995)!"))]))
    assert told.startswith("1 conversations end with the recommender naming a ground truth")
    assert len(endings(dataset([talk("a", ASK, Message("assistant", "Try Heathers"))]))) == 1
    assert endings(dataset([talk("a", ASK, SAY, published=True)])) == []


def test_truths_stand_once():
    heat, ronin = Item("Heat", 1995), Item("Ronin", 1998)
    said = ["1 ground truths are repeated in their conversation and count once."]
    assert once(Folded(), heat, Item("HEAT", 1995), ronin) == ((heat, ronin), said)
    assert once(Folded(), heat, ronin) == ((heat, ronin), [])
    matrix = Item("The Matrix", 1999), Item("Matrix, The", 1999)
    assert once(Folded(), *matrix) == (matrix, [])
    assert once(Normalised(), *matrix) == (matrix[:1], said)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 3))
def test_a_sample_has_as_many_clusters_as_can_be(clusters, size, seed):
    rows = [talk(str(k), cluster=f"c{cluster}") for k, cluster in enumerate(sorted(clusters))]
    chosen = sample(rows, size, seed)
    assert len(chosen) == min(size, len(rows))
    assert [int(c.id) for c in chosen] == sorted({int(c.id) for c in chosen})
    assert len({c.cluster for c in chosen}) == min(size, len(set(clusters)))
    counts = np.unique([c.cluster for c in chosen], return_counts=True)[1]
    full = {c: clusters.count(int(c[1:])) for c in {c.cluster for c in rows}}
    open_ones = [n for c, n in zip(sorted({c.cluster for c in chosen}), counts, strict=True) if n < full[c]]
    assert not open_ones or max(counts) - min(open_ones) <= 1
    assert {c.id for c in sample(rows, max(1, size - 1), seed)} <= {c.id for c in chosen}


def test_notes_are_logged_once_when_the_data_is_loaded(tmp_path, caplog):
    from support import make_config

    from convrec_r1.data.load import load_data

    catalog = write_catalog(tmp_path)
    twice = {**ROW, "ground_truth": [["Heat", 1995], "Heat (1995)"]}
    said = [*ROW["messages"], {"role": "bot", "content": "Heat?"}]
    for split in SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", {**twice, "id": split, "messages": said})
    cfg = make_config("data=jsonl", f"data.path={tmp_path}", f"data.catalog={catalog}")
    with caplog.at_level(logging.WARNING):
        data = load_data(cfg.data, cfg.n)
    assert data["train"][0].ground_truth == (Item("Heat", 1995),)
    for told in (
        "3 ground truths are repeated",
        "validation shares 0 clusters and the text of 1",
        "3 of 3 conversations end",
        "naming a ground truth",
    ):
        assert caplog.text.count(told) == 1


def test_a_large_file_shows_its_progress(tmp_path, monkeypatch, capsys):
    from convrec_r1.data import files

    monkeypatch.setattr(files, "_LARGE", 1000)
    monkeypatch.setattr(files, "_STEP", 1000)
    path = tmp_path / "train.jsonl"
    jsonl.dump([talk(str(k)) for k in range(3000)], path)
    for name in (path, tmp_path / "train.jsonl.gz"):
        name.write_bytes(path.read_bytes() if name == path else gzip.compress(path.read_bytes()))
        assert len(jsonl.read(name)) == 3000
        steps = -(-name.stat().st_size // 1000)
        assert f"Reading {name.name} (MB): {steps}/{steps}" in capsys.readouterr().out
