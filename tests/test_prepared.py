"""Prepared data: the same as data in memory, made once, never taken for whole when it is not, and small in memory."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PATHS, make_config

from convrec_r1.base.digest import of_rows
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import write_json
from convrec_r1.config.parts import matching
from convrec_r1.data import SPLITS, Catalog, Conversation, Dataset, Message
from convrec_r1.data import prepared as room
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.load import DEMONSTRATIONS, digests, load_data, sample, shown, with_demonstrations
from convrec_r1.data.stored import Rows, Writer, Writers, read_catalog, rows_of, write_items
from convrec_r1.distill.demonstrations import with_distilled
from convrec_r1.distill.export import write_dataset
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.lists import Item
from convrec_r1.matching import Matching
from convrec_r1.tasks.kept import kept as list_kept
from convrec_r1.tasks.warm_start import examples

FILMS = [Item("Heat", 1995), Item("Ronin", 1998), Item("Thief", 1981), Item("Drive", 2011), Item("Fargo", 1996)]


@pytest.fixture(autouse=True)
def _prepare_all(monkeypatch):
    """Prepare files of any size."""
    monkeypatch.setattr(room, "LEAST", 0)


def talk(number: int, split: str = "train", **more) -> Conversation:
    truths = (FILMS[number % 5], FILMS[(number + 1) % 5])
    said = Message("user", f"Like film {number}?"), Message("assistant", "Which?"), Message("user", "Any.")
    values = {"seen": (FILMS[(number + 2) % 5].title,), "demonstration": (FILMS[number % 5],) if number % 3 else None}
    return Conversation(f"{split}{number}", f"c{number // 2}-{split}", said, truths, split=split, **{**values, **more})


def write_files(folder: Path, train: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", 8), ("test", 12)):
        jsonl.dump([talk(number, split) for number in range(count)], folder / f"{split}.jsonl")
    lines = [f"{title},{year}" for title, year in FILMS]
    (folder / "catalog.csv").write_text("\n".join(["title,year", *lines]) + "\n")
    return folder


def load(kept: Path | None, *overrides: str, need=(), match: Matching | None = None) -> Dataset:
    cfg = make_config(*overrides)
    return load_data(cfg.data, cfg.n, match or matching(cfg), need=need, kept=kept)


def folders(kept: Path) -> list[Path]:
    return sorted(path for path in kept.iterdir() if path.is_dir())


def assert_equal(data: Dataset, other: Dataset) -> None:
    """Row for row, item for item, digest for digest."""
    for split in SPLITS:
        assert list(data[split]) == list(other[split]), split
    assert list(data.catalog) == list(other.catalog)
    assert data.catalog.metadata == other.catalog.metadata
    assert digests(data) == digests(other) == digests(Dataset(data.catalog, {s: list(data[s]) for s in SPLITS}))


def by_definition(data: Dataset) -> dict[str, str]:
    """The digests as inputs.json of earlier versions has them."""
    names = [f.name for f in fields(Conversation) if f.name != "demonstration"]
    found = {"catalog": of_rows([item, sorted(data.catalog.metadata.get(item, ()))] for item in data.catalog)}
    for split in SPLITS:
        found[split] = of_rows([getattr(c, name) for name in names] for c in data[split])
    return found | {
        DEMONSTRATIONS: of_rows([c.id, c.demonstration] for split in ("train", "validation") for c in data[split])
    }


# -- the same as in memory -------------------------------------------------------------------------------------------------

REAL = [
    ("reddit_v2", "reddit_v2/jsonl", "data.catalog=reddit_v2/catalog.csv"),
    ("reddit_v2", "reddit_v2/arrow", "data.catalog=reddit_v2/gt_catalog.pkl"),
    ("reddit_v2", "reddit_v2/jsonl", "data.catalog=reddit_v2/catalog.csv data.prompt=ours data.train_size=20 data.test_size=5"),
    ("redial", "redial", "data.train_size=300"),
    ("redial", "redial", "data.exclude_seen=false data.demonstrations=published match=folded"),
    ("inspired", "inspired", ""),
    ("cikm23", "cikm23/inspired", ""),
    ("opendialkg", "opendialkg", "data.train_size=400 match=normalised"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "more"), REAL)
def test_real_data_is_the_same(shared, tmp_path, caplog, name, path, more):
    root = shared / "data"
    options = [f"data={name}", f"data.path={root / path}", *more.replace("=reddit_v2/", f"={root}/reddit_v2/").split()]
    with caplog.at_level(logging.INFO):
        in_memory = load(None, *options)
        said = sorted(record.getMessage() for record in caplog.records)
        for _ in range(2):
            caplog.clear()
            prepared = load(tmp_path, *options)
            assert isinstance(prepared["train"], Rows)
            told = sorted(r.getMessage() for r in caplog.records if r.name != "convrec_r1.data.prepared")
            assert told == said
            assert_equal(in_memory, prepared)
    assert digests(prepared) == by_definition(in_memory)
    assert len(folders(tmp_path)) == 1
    rule = matching(make_config(*options))
    for split in ("train", "test"):
        one, other = (Popularity.from_conversations(data[split], data.catalog, rule) for data in (in_memory, prepared))
        assert one.counts.tolist() == other.counts.tolist()
    assert sample(in_memory["test"], 7, 3) == sample(prepared["test"], 7, 3)
    assert list(shown(in_memory["train"])) == list(shown(prepared["train"]))


TEXT = st.text(st.characters(), max_size=12)
ITEMS = st.builds(Item, TEXT, st.none() | st.integers(0, 9999))
CONVERSATIONS = st.builds(
    Conversation, id=TEXT, cluster=TEXT,
    messages=st.lists(st.builds(Message, st.sampled_from(["user", "assistant", "system"]), TEXT), max_size=3).map(tuple),
    ground_truth=st.lists(ITEMS, max_size=3).map(tuple), seen=st.lists(TEXT, max_size=2).map(tuple),
    demonstration=st.none() | st.lists(ITEMS, max_size=3).map(tuple), split=st.sampled_from(SPLITS),
    has_instruction=st.booleans(),
)  # fmt: skip


@given(st.lists(CONVERSATIONS, max_size=12), st.integers(1, 4))
def test_rows_of_any_text_come_back_unchanged(tmp_path_factory, rows, batch):
    folder = tmp_path_factory.mktemp("rows")
    truths: dict[Item, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convrec_r1.data.stored._BATCH", batch)
        with Writers(folder, truths) as writers:
            for row in rows:
                writers.add(row)
        for split in SPLITS:
            own = [row for row in rows if row.split == split]
            found = rows_of(folder, split, list(truths))
            assert list(found) == own
            assert [found[at - len(own)] for at in range(len(own))] == own
            assert list(found[1::2]) == own[1::2]
            assert list(found[::-1][:2]) == own[::-1][:2]
            assert (found.ids, found.clusters) == ([c.id for c in own], [c.cluster for c in own])
            assert found.demonstrated.tolist() == [bool(c.demonstration) for c in own]
            names, lengths, numbers = found[1:].truths()
            assert lengths.tolist() == [len(c.ground_truth) for c in own[1:]]
            assert [names[number] for number in numbers] == [item for c in own[1:] for item in c.ground_truth]
            data = Dataset(Catalog([]), {split: own})
            assert (
                writers.digests[split]
                == by_definition(Dataset(Catalog([]), {s: [] for s in SPLITS} | {split: own}))[split]
            )
            assert digests(Dataset(Catalog([]), {split: found})) == digests(data)
            with pytest.raises(IndexError):
                found[len(own)]
    shutil.rmtree(folder)


@given(st.lists(ITEMS, max_size=8), st.lists(TEXT, max_size=3))
def test_catalogs_come_back_unchanged(tmp_path_factory, items, tags):
    file = tmp_path_factory.mktemp("catalog") / "catalog.arrow"
    catalog = Catalog(items, dict.fromkeys(items[::2], tags))
    write_items(catalog, file, catalog.metadata)
    again = read_catalog(file)
    assert list(again) == list(catalog)
    assert again.metadata == catalog.metadata
    file.unlink()


@pytest.mark.parametrize(
    "more", [(), ("data.train_size=11",), ("data.demonstrations=published", "data.exclude_seen=false")]
)
def test_what_a_run_asks_of_its_data_is_the_same(tmp_path, more):
    """Training, warm start, plan and Stage 1's lists, with rows in memory and on disk."""
    files = write_files(tmp_path / "data")
    options = ("data=jsonl", f"data.path={files}", "n=3", *more)
    one, other = load(None, *options), load(tmp_path / "kept", *options)
    assert_equal(one, other)
    assert list(with_demonstrations(one["train"], 1, "x")) == list(with_demonstrations(other["train"], 1, "x"))
    assert isinstance(with_demonstrations(other["train"], 1, "x"), Rows)

    class Encoder:
        asked = 0

        def prompt(self, conversation):
            self.asked += 1
            return [len(message.content) for message in conversation.messages]

        def completion(self, items):
            return [year for _, year in items]

    encoder = Encoder()
    at_once = examples(with_demonstrations(one["train"], 2, "x"), encoder)
    assert encoder.asked == len(at_once)
    later = examples(with_demonstrations(other["train"], 2, "x"), encoder)
    assert encoder.asked == len(later), "those on disk are read when a step needs them"
    assert list(later) == list(at_once)
    made = Dataset(one.catalog, {s: [replace(c, demonstration=(FILMS[4],)) for c in list(one[s])[:3]] for s in SPLITS})
    write_dataset(made, tmp_path / "made")
    distilled, lazily = with_distilled(one, tmp_path / "made"), with_distilled(other, tmp_path / "made")
    assert isinstance(lazily["train"], Rows)
    assert_equal(distilled, lazily)
    assert list(shown(distilled["train"])) == list(shown(lazily["train"])) == list(lazily["train"])[:3]
    assert digests(lazily)[DEMONSTRATIONS] != digests(other)[DEMONSTRATIONS]


def test_popularity_is_counted_once(tmp_path, monkeypatch):
    """Each item is listed twice, so that two truths of a conversation are one item under one of the rules."""
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    with (files / "train.jsonl").open("a") as file:
        for more in range(3):
            truths = [[FILMS[0].title.upper() + "!", 1995], list(FILMS[0]), ["Nobody Knows It", 1999]]
            said = [{"role": "user", "content": "Any."}]
            file.write(json.dumps({"id": f"more{more}", "messages": said, "ground_truth": truths}) + "\n")
    options = ("data=jsonl", f"data.path={files}", "match=normalised")
    rule = matching(make_config(*options))
    by_definition = Popularity.from_conversations(load(None, *options)["train"], Catalog(FILMS), rule)
    assert by_definition.counts.sum() == 40 * 2 + 3
    data = load(kept, *options)
    (folder,) = folders(kept)

    def assert_same(found: Popularity) -> None:
        for name in ("counts", "ranks", "segments"):
            assert getattr(found, name).tolist() == getattr(by_definition, name).tolist()
            assert getattr(found, name).dtype == getattr(by_definition, name).dtype
        assert (found.items, found.total) == (by_definition.items, by_definition.total)
        assert found.rank(Item("heat", 1995)) == by_definition.rank(Item("heat", 1995))
        talks = list(data["train"])[:5]
        assert [found.recommend(c, 3) for c in talks] == [by_definition.recommend(c, 3) for c in talks]

    assert_same(Popularity.in_training(data, rule))
    (file,) = folder.glob("popularity-*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(Popularity, "from_conversations", None)  # it is not called
        assert_same(Popularity.in_training(load(kept, *options), rule))
    folded = matching(make_config("match=folded"))
    other = Popularity.in_training(data, folded)
    assert len(list(folder.glob("popularity-*.npy"))) == 2, "another rule counts otherwise"
    assert (
        other.counts.tolist()
        == Popularity.from_conversations(list(data["train"]), data.catalog, folded).counts.tolist()
    )
    for harm in (
        lambda: os.truncate(file, 150),
        lambda: file.write_bytes(b""),
        lambda: np.save(file, np.zeros(4, dtype=np.int64)),
        lambda: np.save(file, np.zeros(5)),
        file.unlink,
    ):
        harm()
        assert_same(Popularity.in_training(data, rule))
        assert np.load(file).tolist() == by_definition.counts.tolist(), "and it is whole again"
    half = replace(data, splits={**data.splits, "train": data["train"][:20]})
    assert Popularity.in_training(half, rule).total == 40, "some of the rows"
    monkeypatch.setattr("convrec_r1.evaluate.popularity.replacing", read_only)
    file.unlink()
    assert_same(Popularity.in_training(data, rule))


def read_only(*_, **__):
    raise OSError(30, "Read-only file system")


def test_small_files_and_foreign_code_stay_in_memory(tmp_path, monkeypatch):
    files = write_files(tmp_path / "data")
    options = ("data=jsonl", f"data.path={files}")

    class Strange(Matching):
        def key(self, title: str) -> str:
            return title

    assert isinstance(load(tmp_path / "kept", *options, match=Strange())["train"], list), "its options are not known"
    assert isinstance(load(tmp_path / "kept", "data=movieland", "data.train_size=5")["train"], list)
    (tmp_path / "own_adapter.py").write_text(
        "from convrec_r1.data.adapters.jsonl import Jsonl\nclass Own(Jsonl):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(load(tmp_path / "kept", *options, "data._target_=own_adapter.Own")["train"], list)
    monkeypatch.setattr(room, "LEAST", 1 << 20)
    assert isinstance(load(tmp_path / "kept", *options)["train"], list)
    assert not (tmp_path / "kept").exists()


# -- made once, of the files as they are -----------------------------------------------------------------------------------


def test_it_is_read_once_and_made_again_only_if_something_counts(tmp_path, monkeypatch, caplog):
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    options = ("data=jsonl", f"data.path={files}", "data.demonstrations=published")
    old = time.time() - 60
    for file in files.iterdir():
        os.utime(file, (old, old))
    first = load(kept, *options)

    def fail(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(jsonl.Jsonl, "stream", fail)
        patch.setattr(jsonl.Jsonl, "load", fail)
        patch.setattr(room, "of_file", fail)
        patch.setattr("convrec_r1.data.load.encode", fail)
        assert_equal_digests = digests(load(kept, *options, "n=7", "data.instruction=x", "data.domain=y"))
        assert assert_equal_digests == digests(first)
    moved = Path(shutil.copytree(files, tmp_path / "moved"))
    with caplog.at_level(logging.WARNING):
        load(kept, "data=jsonl", f"data.path={moved}", "data.demonstrations=published")
    assert len(folders(kept)) == 1, "contents count, not places"
    known = 1
    for change in (
        "data.train_size=9",
        "data.exclude_seen=false",
        "data.prompt=published",
        "match=folded",
        "data.demonstrations=neighbours",
    ):
        load(kept, *options, change)
        known += 1
        assert len(folders(kept)) == known, change
    text = (files / "train.jsonl").read_text()
    (files / "train.jsonl").write_text(text.replace("film 1?", "film 7?"))  # as many bytes
    changed = load(kept, *options)
    assert len(folders(kept)) == known + 1
    assert changed["train"][1].messages[0].content == "Like film 7?"
    assert digests(changed)["train"] != digests(first)["train"]
    monkeypatch.setattr(room, "of_code", lambda *rooms: "other")
    load(kept, *options)
    assert len(folders(kept)) == known + 2, "other code may read something else"


def test_a_file_that_changes_at_once_again_is_looked_at_again(tmp_path, monkeypatch):
    """Within the resolution of a file system's times a second change leaves the same stamp."""
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    options = ("data=jsonl", f"data.path={files}")
    file = files / "train.jsonl"
    load(kept, *options)
    then, text = file.stat(), file.read_text()
    with file.open("r+") as opened:
        opened.write(text.replace("film 1?", "film 7?"))
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert load(kept, *options)["train"][1].messages[0].content == "Like film 7?"


def test_faults_of_the_data_are_told_and_nothing_is_kept(tmp_path):
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    options = ("data=jsonl", f"data.path={files}")
    with (files / "test.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"test\.jsonl, line 13: not valid JSON"):
        load(kept, *options)
    assert folders(kept) == []
    write_files(files)
    (files / "validation.jsonl").unlink()
    assert len(load(kept, *options)["validation"]) == 0
    for _ in range(2):
        with pytest.raises(UserError, match="no conversations in the split validation"):
            load(kept, *options, need=["validation"])
    (files / "catalog.csv").write_text("title,year\nAlien,1979\n")
    with pytest.raises(UserError, match="none of the 5 ground truths"):
        load(kept, *options)


def test_what_is_cut_off_is_noticed_and_made_again(tmp_path, caplog):
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    options = ("data=jsonl", f"data.path={files}")
    first = digests(load(kept, *options))
    (folder,) = folders(kept)
    for harm in (
        lambda: os.truncate(folder / "train.arrow", 100),
        (folder / "test.arrow").unlink,
        lambda: (folder / room.MARK).write_text("{"),
        (folder / room.MARK).unlink,
    ):
        harm()
        again = load(kept, *options)
        assert isinstance(again["train"], Rows)
        assert digests(again) == first
        assert len(list(again["train"])) == 40


def test_outputs_that_cannot_be_written_are_told(tmp_path, monkeypatch, caplog):
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    options = ("data=jsonl", f"data.path={files}")
    kept.write_text("a file")
    data = load(kept, *options)
    assert isinstance(data["train"], list)
    assert "cannot be written" in caplog.text
    assert "outputs=DIR" in caplog.text
    kept.unlink()
    load(kept, *options)
    caplog.clear()

    monkeypatch.setattr(room, "locked", read_only)
    assert isinstance(load(kept, *options)["train"], Rows), (
        "prepared data is used although the folder cannot be written"
    )
    assert "cannot be written" not in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(room, "LEAST", 0)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Writer, "_flush", lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match=r"No space left on device\. .*outputs=DIR"):
        load(tmp_path / "other", *options)
    assert folders(tmp_path / "other") == []


# -- processes -------------------------------------------------------------------------------------------------------------

LOAD = """
import sys, time
from pathlib import Path
from convrec_r1.data import prepared
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.config import DataConfig
from convrec_r1.data.load import digests, load_data
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
prepared.LEAST = 0
pause = float(sys.argv[3])
iterate = jsonl.iterate
def slowly(path):
    for number, conversation in enumerate(iterate(path)):
        if number == 30:
            print("half", flush=True)
            time.sleep(pause)
        yield conversation
jsonl.iterate = slowly
cfg = DataConfig(_target_="convrec_r1.data.adapters.jsonl.Jsonl", name="jsonl", path=sys.argv[1])
data = load_data(cfg, 5, kept=Path(sys.argv[2]))
print("rows", type(data["train"]).__name__, len(data["train"]), digests(data)["train"], flush=True)
"""


def start(files: Path, kept: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", LOAD, str(files), str(kept), str(pause)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **PATHS}, **pipes)


def test_of_several_processes_one_prepares_and_one_may_die(tmp_path):
    files, kept = write_files(tmp_path / "data"), tmp_path / "kept"
    killed = start(files, kept, 60)
    for line in killed.stdout:
        if line.strip() == "half":
            break
    (folder,) = folders(kept)
    assert not (folder / room.MARK).exists()
    others = [start(files, kept, 1.0) for _ in range(2)]
    seen = [[], []]
    for lines, other in zip(seen, others, strict=True):
        for line in other.stdout:
            lines.append(line)
            if "waiting" in line:
                break
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    said = ["".join(lines) + other.communicate(timeout=60)[0] for lines, other in zip(seen, others, strict=True)]
    assert [other.returncode for other in others] == [0, 0], said
    assert sum("half" in text for text in said) == 1, "one of them read the files"
    assert sum("prepared before" in text for text in said) == 1
    expected = digests(load(None, "data=jsonl", f"data.path={files}", "data.demonstrations=published"))["train"]
    for text in said:
        assert "waiting for it" in text
        assert f"rows Rows 40 {expected}" in text
    assert (folder / room.MARK).exists()
    assert not (folder / "raw").exists()


BIG = """
import sys
from pathlib import Path
from convrec_r1.data.config import DataConfig
from convrec_r1.data.load import digests, load_data
from convrec_r1.evaluate.popularity import Popularity
import pandas, pyarrow.compute  # pyarrow imports them when it has to
def memory(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))
before = memory("VmRSS")
cfg = DataConfig(_target_="convrec_r1.data.adapters.jsonl.Jsonl", name="jsonl", path=sys.argv[1])
data = load_data(cfg, 5, kept=Path(sys.argv[2]))
digests(data)
Popularity.from_conversations(data["train"], data.catalog)
for at in range(len(data["train"])):  # a whole epoch
    data["train"][at]
assert [data["train"][at].id for at in (0, 12345, 19899)] == ["train0", "train12345", "train19899"]
print(memory("VmHWM") - before, type(data["train"]).__name__)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_process_holds_no_rows(tmp_path):
    """20,000 conversations of 2,000 characters: 50 MB as text, twice as much as objects."""
    files = write_files(tmp_path / "data")
    long = "word " * 400
    rows = (replace(talk(number), messages=(Message("user", f"{long}{number}"),)) for number in range(19_900))
    jsonl.dump(rows, files / "train.jsonl")

    def grows() -> tuple[float, str]:
        command = [sys.executable, "-c", BIG, str(files), str(tmp_path / "kept")]
        done = subprocess.run(command, env={**os.environ, **PATHS}, capture_output=True, text=True, check=True)
        megabytes, kind = done.stdout.split()[-2:]
        return float(megabytes), kind

    preparing, kind = grows()
    assert kind == "Rows"
    assert preparing < 60, "preparing needs the ids and hashes of the rows, and the written pages of one batch"
    later, kind = grows()
    assert kind == "Rows"
    assert later < 20


def test_it_is_listed_and_deleted_and_runs_record_it(tmp_path, monkeypatch, capsys):
    """In this process; test_inputs runs the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVREC_R1_CACHE", str(tmp_path / "none"))
    files = write_files(tmp_path / "data")
    kept = tmp_path / "outputs" / "prepared"
    load(kept, "data=jsonl", f"data.path={files}")
    (folder,) = folders(kept)
    run = tmp_path / "outputs" / "main" / "run"
    run.mkdir(parents=True)
    write_json(run / "inputs.json", {"uses": [folder.name]})
    list_kept(make_config("task=kept"))
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    columns = "|".join("".join(cells) for cells in zip(*rows, strict=True))
    for said in (folder.name, "prepared", "60 conversations of jsonl", "main/run"):
        assert said.replace(" ", "") in columns.replace(" ", "")
    list_kept(make_config("task=kept", "kept.clear=[unused]"))
    assert folder.exists()
    list_kept(make_config("task=kept", "kept.clear=[prepared]"))
    assert folders(kept) == []
