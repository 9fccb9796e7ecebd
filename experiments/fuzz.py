"""Hypothesis against everything that reads what others wrote: rows, catalogs, teachers' answers, configs.

    python experiments/fuzz.py --minutes 2 [--target NAME ...]     # prints, and writes experiments/fuzz.json

Whatever stands in a file, the one exception that may come out is a UserError; of a config, Hydra's and OmegaConf's own too.
What was read must be of use: it is fingerprinted, written, read again, scored. Cases are valid ones, bent: wrong types,
missing keys, numbers that are none, nesting without end, marks and broken bytes. A case that takes SLOW seconds is a fault.
"""

# ruff: noqa: E501  hostile text is long and ambiguous

import argparse
import contextlib
import io
import json
import logging
import math
import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from convrec_r1.base.errors import UserError

SLOW = 10.0
HERE = Path(__file__).parent

# -- what bends a case -----------------------------------------------------------------------------------------------------

DEEP, DIGITS = "@@deep@@", "@@digits@@"
"""Stand for what json.dumps cannot write: 100,000 open brackets, a number of 5000 digits."""

ODD = (
    "", " ", "\u00a0", "\x00", "\x1b[2J\x1b]0;owned\x07", "\u202eevil\u202c", "\u200f", "\ufeff", "\ud83d", "\udc80x", "\u2028", "\x85",
    "\r", "\n", "\t", "|", "`", "<script>alert(1)</script>", "{n}", "{{7*7}}", "${oc.env:HOME}", "../../x", "~nobody/x", "(1999)",
    "((((", "(\u0661\u0669\u0669\u0669)", "\u00b2", "1.", "- ", "**", "İ", "ß", "e\u0301" * 50, "x" * 3000, " " * 3000, "NaN", "null",
    "1e999", "-0", "0x10", "[", "{", '"', "'", "[{[]: 1}]", "[1, {2}]", "[" * 300, "[" + "-" * 3000 + "1]",
)  # fmt: skip
texts = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=12),
    st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=4)), max_size=4).map("".join),
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 10**18, 10**400, 2**63, math.inf, -math.inf, math.nan, 1e308, 1999.5])
)  # fmt: skip
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from([DEEP, DIGITS])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def places(tree: Any, at: tuple = ()) -> list[tuple]:
    """The path of every value in a tree of lists and dicts."""
    found = [at]
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        found += places(value, (*at, key))
    return found


def bend(draw: Callable, tree: Any) -> Any:
    """One change somewhere in a copy of the tree: another value, a key less, an entry twice, another key."""
    tree = json.loads(json.dumps(tree))
    at = draw(st.sampled_from(places(tree)))
    if not at:
        return draw(junk)
    parent = tree
    for key in at[:-1]:
        parent = parent[key]
    how = draw(st.sampled_from(["replace", "replace", "drop", "twice", "rename"]))
    if how == "replace":
        parent[at[-1]] = draw(junk)
    elif how == "drop":
        del parent[at[-1]]
    elif isinstance(parent, list):
        parent.insert(at[-1], parent[at[-1]])
    else:
        parent[draw(texts)] = parent.pop(at[-1]) if how == "rename" else parent[at[-1]]
    return tree


@st.composite
def rows(draw: Callable, valid: st.SearchStrategy, bends: int = 3) -> list[Any]:
    """A few rows, most of them bent in a place or two."""
    made = draw(st.lists(valid, min_size=1, max_size=3))
    for _ in range(draw(st.integers(0, bends))):
        at = draw(st.integers(0, len(made) - 1))
        with contextlib.suppress(ValueError, RecursionError):  # a bent row that no longer can be copied
            made[at] = bend(draw, made[at])
    return made


def as_json(value: Any, ascii_only: bool = True) -> bytes:
    text = json.dumps(value, ensure_ascii=ascii_only)
    text = text.replace(f'"{DEEP}"', "[" * 100_000).replace(f'"{DIGITS}"', "9" * 5000)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def bytes_of(draw: Callable, content: bytes) -> bytes:
    """The content as files come: mostly whole; with a mark, other line ends, cut off, or with bytes that do not belong."""
    how = draw(st.sampled_from(["whole"] * 6 + ["mark", "crlf", "cut", "byte", "flip", "utf16", "blank lines", "none"]))
    at = draw(st.integers(0, len(content)))
    if how == "mark":
        return b"\xef\xbb\xbf" + content
    if how == "crlf":
        return content.replace(b"\n", b"\r\n")
    if how == "cut":
        return content[:at]
    if how == "byte":
        return (
            content[:at]
            + draw(st.sampled_from([b"\x00", b"\xff", b"\xc3\x28", b"\x1a", b"\n", b'"', b"\\"]))
            + content[at:]
        )
    if how == "flip":
        return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    if how == "utf16":
        return content.decode("utf-8", "replace").encode("utf-16")
    if how == "blank lines":
        return b"\n \n" + content.replace(b"\n", b"\n\n")
    return b"" if how == "none" else content


@st.composite
def json_lines(draw: Callable, valid: st.SearchStrategy) -> bytes:
    ascii_only = draw(st.booleans())
    return draw(bytes_of(b"".join(as_json(row, ascii_only) + b"\n" for row in draw(rows(valid)))))


@st.composite
def json_list(draw: Callable, valid: st.SearchStrategy) -> bytes:
    made: Any = draw(rows(valid))
    if draw(st.integers(0, 9)) == 0:
        made = draw(junk)
    return draw(bytes_of(as_json(made, draw(st.booleans()))))


@st.composite
def csv_file(draw: Callable, columns: tuple[str, ...]) -> bytes:
    names = list(draw(st.permutations(columns)))
    if draw(st.integers(0, 5)) == 0:
        names[draw(st.integers(0, len(names) - 1))] = draw(texts)
    lines = [",".join(names)]
    cell = st.one_of(
        st.sampled_from(["Heat", "1995", "1995.0", "a|b", '["a", "b"]', "['a']", '"10,000 BC"', '"']), texts
    )
    for row in draw(st.lists(st.lists(cell, min_size=len(names) - 1, max_size=len(names) + 1), max_size=4)):
        lines.append(",".join(row))
    return draw(bytes_of("\n".join(lines).encode("utf-8", "surrogatepass")))


# -- what is read ----------------------------------------------------------------------------------------------------------

titles = st.one_of(st.sampled_from(["Heat", "Thief", "Amélie", "10,000 BC", "千と千尋"]), texts.filter(str.strip))
years = st.one_of(st.integers(1900, 2030), st.none(), st.sampled_from(["1995", "1995.0", ""]))
items = st.one_of(
    st.tuples(titles, years).map(list),
    st.fixed_dictionaries({"title": titles, "year": years}),
    st.tuples(titles, st.integers(1900, 2030)).map(lambda pair: f"{pair[0]} ({pair[1]})"),
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": titles}), min_size=1, max_size=3
)
ids = st.one_of(st.uuids().map(str), texts.filter(str.strip), st.integers())
jsonl_row = st.fixed_dictionaries(
    {"id": ids, "messages": messages, "ground_truth": st.lists(items, min_size=1, max_size=2)},
    optional={
        "cluster": texts.filter(str.strip), "seen": st.lists(titles, max_size=2), "demonstration": st.lists(items, max_size=3),
        "split": st.sampled_from(["train", "validation", "test"]), "has_instruction": st.booleans(),
    },
)  # fmt: skip
pairs = st.tuples(titles, st.sampled_from(["1995", "2004", ""])).map(list)
reddit_row = st.fixed_dictionaries(
    {"prompt": messages, "completion": messages, "seen_titles": st.lists(titles, max_size=2),
     "groundtruth_with_release_year": st.lists(pairs, max_size=2)},
    optional={"sample_id": ids},
)  # fmt: skip
film_ids = st.sampled_from(["1", "22", "333"])
redial_dialogue = st.fixed_dictionaries(
    {
        "conversationId": ids, "initiatorWorkerId": st.just(0), "respondentWorkerId": st.just(1),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"senderWorkerId": st.integers(0, 1), "text": st.sampled_from(["Hi", "I like @1", "Try @22 and @333", "@"])}
            ),
            max_size=5,
        ),
        "movieMentions": st.one_of(
            st.dictionaries(film_ids, titles.map(lambda title: f"{title} (1995)"), max_size=3), st.just([])
        ),
        "initiatorQuestions": st.one_of(
            st.dictionaries(film_ids, st.fixed_dictionaries({"liked": st.integers(0, 2)}), max_size=2), st.just([])
        ),
    }
)  # fmt: skip
redial_turn = st.fixed_dictionaries(
    {"dialog_id": ids, "turn_id": st.integers(), "context": st.lists(titles, max_size=3), "entity": st.lists(titles, max_size=2),
     "rec": st.lists(titles.map(lambda title: f"{title} (1995)"), max_size=3)}
)  # fmt: skip
numbers = st.lists(st.integers(0, 1) | st.integers(0, 9), max_size=2)
cikm23_turn = st.fixed_dictionaries(
    {
        "dialog_id": ids,
        "turn_id": st.integers(),
        "context": st.lists(titles, max_size=3),
        "rec": numbers,
        "prev_entity": numbers,
    }
)
opendialkg_turn = st.fixed_dictionaries(
    {"dialog_id": ids, "turn_id": st.integers(), "context": st.lists(titles, max_size=3), "entity": st.lists(titles, max_size=2),
     "rec": st.lists(titles, max_size=3)}
)  # fmt: skip
metadata_row = st.fixed_dictionaries(
    {"title": titles},
    optional={
        "year": years, "genres": st.one_of(st.lists(titles, max_size=3), st.sampled_from(["a|b", "a, b", "['a', \"b\"]"]), texts),
        "director": titles, "cast": st.lists(titles, max_size=2), "plot": texts, "keywords": texts,
    },
)  # fmt: skip


@st.composite
def inspired_file(draw: Callable) -> bytes:
    films = st.sampled_from(["Heat (1995)", "Thief (1981)", "Heat"])
    lines = ["dialog_id\tutt_id\tspeaker\ttext\tmovies\tmovie_dict"]
    for number in range(draw(st.integers(0, 5))):
        table = draw(
            st.one_of(
                st.dictionaries(films, st.integers(0, 3)).map(repr), st.sampled_from(["{", "[1]", "{1: 2}"]), texts
            )
        )
        speaker = draw(st.sampled_from(["SEEKER", "RECOMMENDER", "RECOMMENDER", "x"]))
        named = "; ".join(draw(st.lists(films, max_size=2)))
        lines.append("\t".join([draw(st.sampled_from("ab")), str(number), speaker, draw(titles), named, table]))
    return draw(bytes_of("\n".join(lines).encode("utf-8", "surrogatepass")))


@st.composite
def pickles(draw: Callable) -> bytes:
    """A catalog that Python pickled, with what only a pickle can hold, and with opcodes that were tampered with."""
    made: Any = [tuple(row) if isinstance(row, list) else row for row in draw(rows(items))]
    odd = st.sampled_from([10**4000, {1}, frozenset("x"), bytearray(b"x"), b"x", (), shared(60), 1j, ..., {(1, 2): 3}])
    if draw(st.booleans()):
        made.append(draw(st.one_of(odd, st.tuples(titles, odd), st.tuples(odd, years))))
    content = pickle.dumps(draw(odd) if draw(st.integers(0, 9)) == 0 else made, draw(st.integers(0, 5)))
    return draw(st.one_of(bytes_of(content), st.sampled_from(BOMBS)))


def shared(depth: int) -> list:
    """Small in memory, and without end once written out."""
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


BOMBS = (
    b"\x80\x04]r\xff\xff\xff\xff.",  # remembers a list as number 4294967295: a table of that length
    b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # announces a bytearray of a terabyte
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",  # and bytes
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # and a frame
    b"\x8b\xff\xff\xff\x7f.",  # and an integer
    b"(" * 100_000 + b".",
    b"cos\nsystem\n(S'true'\ntR.",
)


@st.composite
def answers(draw: Callable) -> tuple[str, int]:
    """What a teacher might write: lines of every form, objects, ends and beginnings of them."""
    title = draw(titles)
    line = st.one_of(
        st.sampled_from([
            f"1. {title} (1995)", f"2) **{title}** - 1995", f"- {title} [1995]: good", f"{title}", "1: 2", "2. -1 (why)", "[3] = +1",
            "4. Heat (1995): 7", "```json", "```", "<think>", "</think>", "Here are some:", '{"1": 2, "2": [1]}', '{"ratings": {"3": NaN}}',
            '{"item": 1, "genres": ["a"], "keywords": null, "plot": "x"}', '{"item": 1e999, "plot": {}}', '{"item": "1", "genres": [',
            '{"1": 1' + "0" * 5000 + "}", '{"a": ' * 400, "[" * 2000, "1. " + " " * 4000 + "x", "a" + " " * 4000 + "b", "1: " + "," * 4000,
            "(" * 3000, "* " * 2000, "x - " * 1000, "3. " + "a: " * 1500, "#> " * 1500, "1: 2, " * 1000,
        ]),
        texts,
    )  # fmt: skip
    joined = st.sampled_from(["\n", "\n", "\n\n", " ", "", "\r\n"])
    return draw(joined).join(draw(st.lists(line, max_size=6))), draw(st.integers(0, 6))


@st.composite
def configs(draw: Callable) -> list[str]:
    """Overrides of the command line: a choice of each of some groups, and a few keys set to anything."""
    groups = {group: sorted(path.stem for path in (HERE.parent / "conf" / group).glob("*.yaml")) for group in GROUPS}
    chosen = [
        f"{group}={draw(st.sampled_from(names))}" for group, names in groups.items() if draw(st.integers(0, 3)) == 0
    ]
    value = st.one_of(
        st.sampled_from([
            "0", "-1", "1", "2", "7", "1e9", "10000000000000000000000", "nan", "inf", "-inf", "1e-320", "null", "true", "''", "[]", "[0]",
            "[nan]", "[-1,2]", "{}", "{a:1}", "???", "auto", "best", "x" * 400, "~nobody/x", "../../x", "/dev/null", "http://[", "http://u:p@h",
            "'http://h:99999999'", "[http://u:p@h]", "[http://]", "'{x} {0} {n.real}'", "'{'", "'${n}'", "'${nothing}'", "'${oc.env:HOME}'",
            "'${div:1,0}'", "'a|b'", "'a\\nb'", "rl", "sft", "distilled", "pretrained", "wheel", "ndcg@5", "train",
        ]),
        st.integers(-3, 100).map(str), st.floats().map(str),
    )  # fmt: skip
    return chosen + [f"{key}={draw(value)}" for key in draw(st.lists(st.sampled_from(keys()), max_size=4))]


GROUPS = (
    "task", "reward", "algo", "algo/shaping", "rollout", "trainer", "logger", "eval", "teacher", "embedder", "distill", "data",
    "model", "scale", "experiment", "debug",
)  # fmt: skip
_KEYS: list[str] = []


def keys() -> list[str]:
    """Every key of the schema, dotted."""
    if not _KEYS:
        from omegaconf import OmegaConf

        from convrec_r1.config.schema import Config
        from convrec_r1.run.identity import flatten

        _KEYS.extend(
            flatten(OmegaConf.to_container(OmegaConf.structured(Config), throw_on_missing=False, enum_to_str=True))
        )
    return _KEYS


# -- what reads ------------------------------------------------------------------------------------------------------------


def read_data(adapter: str, content: bytes, folder: Path, name: str = "train.jsonl") -> None:
    from convrec_r1.data.config import DataConfig
    from convrec_r1.data.load import make_adapter
    from convrec_r1.matching import Folded

    (folder / name).write_bytes(content)
    catalog = None
    if adapter in ("jsonl.Jsonl", "reddit_v2.RedditV2"):
        catalog = folder / "catalog.csv"
        catalog.write_text("title,year\nHeat,1995\nThief,1981\n", encoding="utf-8")
    (folder / "items.jsonl").write_text('{"name": "Heat"}\n{"name": "Thief"}\n', encoding="utf-8")
    (folder / "entity2id.json").write_text(
        '{"<http://dbpedia.org/resource/Heat_(film)>": 0, "Thief": 1}', encoding="utf-8"
    )
    (folder / "item_ids.json").write_text("[0, 1]", encoding="utf-8")
    cfg = DataConfig(_target_=f"convrec_r1.data.adapters.{adapter}", path=str(folder), catalog=catalog and str(catalog))
    use(make_adapter(cfg, 5, Folded()).load(), folder)


def use(data: Any, folder: Path) -> None:
    """What a run does with a dataset, but for the training: nothing that was read may be in its way."""
    from convrec_r1 import lists
    from convrec_r1.data.adapters import jsonl
    from convrec_r1.data.demonstrations import add_demonstrations
    from convrec_r1.data.load import digests
    from convrec_r1.data.schema import SPLITS
    from convrec_r1.evaluate.popularity import Popularity
    from convrec_r1.evaluate.runner import write_asked
    from convrec_r1.evaluate.scoring import score
    from convrec_r1.matching import Folded

    digests(data)
    data = add_demonstrations(data, 5, Folded())
    for split in SPLITS:
        write_asked(data[split], folder / "asked.jsonl")
        if data[split]:
            again = jsonl.read(folder / "asked.jsonl")
            assert [c.messages for c in again] == [c.messages for c in data[split]], "what was written reads otherwise"
        written = [lists.format(c.demonstration or c.ground_truth) for c in data[split]]
        popularity = Popularity.from_conversations(data["train"], data.catalog)
        score(written, data[split], data.catalog, popularity, n=5, ks=[5]).write_jsonl(folder / "eval.jsonl")


_ARROW: dict[str, bytes] = {}


def read_arrow(case: tuple[str, int, bytes, bytes], folder: Path) -> None:
    """A saved dataset with bytes of one of its files changed, or one whose columns are of other types."""
    import pyarrow as pa

    from convrec_r1.data.adapters.reddit_v2 import RedditV2
    from convrec_r1.matching import Folded

    name, at, changed, column = case
    if not _ARROW:
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        message = [{"role": "user", "content": "Like Heat?"}]
        row = {
            "prompt": message,
            "completion": message,
            "seen_titles": ["Heat"],
            "groundtruth_with_release_year": [["Thief", "1981"]],
        }
        Dataset.from_list([row] * 3).save_to_disk(str(folder / "valid"))
        _ARROW.update({file.name: file.read_bytes() for file in (folder / "valid").iterdir()})
    (folder / "train").mkdir(exist_ok=True)
    for file, content in _ARROW.items():
        if file == name and not column:
            at %= len(content)
            content = content[:at] + changed + content[at + len(changed) :]
        (folder / "train" / file).write_bytes(content)
    if column:
        rows = json.loads(column)
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return  # no arrow file can hold it
        state = json.loads(_ARROW["state.json"])
        arrow = folder / "train" / state["_data_files"][0]["filename"]
        with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / "train" / "dataset_info.json").write_text("{}")
    catalog = folder / "catalog.csv"
    catalog.write_text("title,year\nHeat,1995\nThief,1981\n", encoding="utf-8")
    use(RedditV2(folder, Folded(), catalog).load(), folder)


@st.composite
def arrows(draw: Callable) -> tuple[str, int, bytes, bytes]:
    if draw(st.booleans()):
        name = draw(st.sampled_from(["data-00000-of-00001.arrow", "state.json", "dataset_info.json"]))
        return name, draw(st.integers(0, 20_000)), draw(st.binary(min_size=1, max_size=6)), b""
    made = [row for row in draw(rows(reddit_row)) if isinstance(row, dict)]
    return "", 0, b"", as_json(made).replace(b"[" * 100_000, b"null").replace(b"9" * 5000, b"9") if made else b""


def read_catalog(suffix: str) -> Callable[[bytes, Path], None]:
    def read(content: bytes, folder: Path) -> None:
        from convrec_r1 import lists
        from convrec_r1.data.catalog import Catalog

        (folder / f"c{suffix}").write_bytes(content)
        catalog = Catalog.load(folder / f"c{suffix}")
        assert len(lists.lines(lists.format(catalog))) == len(catalog), "a title of more than one line"
        "".join(map(str, catalog)).encode()

    return read


def read_metadata(suffix: str) -> Callable[[bytes, Path], None]:
    def read(content: bytes, folder: Path) -> None:
        from convrec_r1.distill.metadata import read_metadata

        (folder / f"m{suffix}").write_bytes(content)
        for found in read_metadata(folder / f"m{suffix}").values():
            found.text().encode()

    return read


def read_list(case: tuple[str, int], _: Path) -> None:
    from convrec_r1 import lists

    for required in (True, False):
        found = lists.parse(case[0], year_required=required)
        lists.format(found)
        [lists.fold(item.title) for item in found]


def read_answer(case: tuple[str, int], _: Path) -> None:
    from convrec_r1.distill import answers as read

    text, count = case
    for item in read.recommended(text):
        str(item).encode()
    found = read.ratings(text, count)
    assert sorted([*found.scores, *found.faulty]) == list(range(1, count + 1))
    assert all(score in read.SCORES for score in found.scores.values())
    json.dumps(read.descriptions(text, count), ensure_ascii=False).encode()


def read_config(overrides: list[str], _: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    import convrec_r1.cli  # noqa: F401  registers the schema
    from convrec_r1.config.checks import check
    from convrec_r1.config.files import conf_folder, expand

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            composed = compose("config", overrides=expand(overrides), return_hydra_config=True)
            folder = composed.hydra.run.dir, composed.hydra.sweep.dir, composed.hydra.sweep.subdir
            with open_dict(composed):
                del composed["hydra"]
            if OmegaConf.missing_keys(composed):
                return
            OmegaConf.resolve(composed)
            cfg = OmegaConf.to_object(composed)
        except (HydraException, OmegaConfBaseException):
            return
    check(cfg)
    if cfg.task.name != "compare" and cfg.outputs == "outputs":  # then nothing may be written elsewhere
        inside = Path("outputs").absolute()
        for place in (folder[0], f"{folder[1]}/{folder[2]}"):
            assert inside in Path(os.path.normpath(Path(place).absolute())).parents, place
    cfg.data.instruction.format(n=cfg.n)


@dataclass
class Target:
    cases: st.SearchStrategy
    read: Callable[[Any, Path], None]


def data_target(adapter: str, row: st.SearchStrategy, name: str = "train.jsonl") -> Target:
    return Target(json_lines(row), lambda content, folder: read_data(adapter, content, folder, name))


TARGETS: dict[str, Target] = {
    "lists": Target(answers(), read_list),
    "answers": Target(answers(), read_answer),
    "data jsonl": data_target("jsonl.Jsonl", jsonl_row),
    "data redial": data_target("redial.Redial", st.one_of(redial_dialogue, redial_turn), "train_data.jsonl"),
    "data reddit_v2 jsonl": data_target("reddit_v2.RedditV2", reddit_row),
    "data inspired": Target(
        inspired_file(), lambda content, folder: read_data("inspired.Inspired", content, folder, "train.tsv")
    ),
    "data cikm23": data_target("cikm23.CIKM23", cikm23_turn),
    "data opendialkg": data_target("opendialkg.OpenDialKG", opendialkg_turn),
    "data reddit_v2 arrow": Target(arrows(), read_arrow),
    "catalog csv": Target(csv_file(("title", "year", "genre")), read_catalog(".csv")),
    "catalog json": Target(json_list(items), read_catalog(".json")),
    "catalog jsonl": Target(json_lines(items), read_catalog(".jsonl")),
    "catalog pkl": Target(pickles(), read_catalog(".pkl")),
    "metadata csv": Target(csv_file(("title", "year", "genres", "cast", "plot")), read_metadata(".csv")),
    "metadata json": Target(json_list(metadata_row), read_metadata(".json")),
    "metadata jsonl": Target(json_lines(metadata_row), read_metadata(".jsonl")),
    "config": Target(configs(), read_config),
}


def load_all() -> None:
    """Import what the targets import, so that no case pays for it."""
    import datasets  # noqa: F401
    import hydra  # noqa: F401
    import pyarrow  # noqa: F401

    import convrec_r1.cli
    import convrec_r1.config.checks
    import convrec_r1.data.demonstrations
    import convrec_r1.data.load
    import convrec_r1.distill.answers
    import convrec_r1.distill.metadata
    import convrec_r1.evaluate.runner  # noqa: F401

    keys()


# -- the hunt --------------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What became of a target: cases tried, those that were refused with a UserError, faults by where they arose."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    faults: dict[str, dict[str, str]] = field(default_factory=dict)


def hunt(target: Target, *, seconds: float = math.inf, examples: int = 10**6, start: int = 0) -> Found:
    """Try cases for so long or so many. A fault is shrunk once, then passed over: the hunt goes on for others."""
    load_all()
    found, began, round_ = Found(), time.monotonic(), start
    with tempfile.TemporaryDirectory() as scratch:
        while found.cases < examples and time.monotonic() - began < seconds:
            left = min(100, examples - found.cases)
            until = began + seconds
            _round(target, found, left, until, round_, Path(scratch))
            round_ += 1
    found.seconds = round(time.monotonic() - began, 1)
    found.slowest = round(found.slowest, 2)
    return found


def _round(target: Target, found: Found, examples: int, until: float, number: int, scratch: Path) -> None:
    latest: dict[str, str] = {}
    shrinking_until = math.inf

    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False,
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(target.cases)
    def attempt(case: Any) -> None:
        nonlocal shrinking_until
        if time.monotonic() > min(until, shrinking_until) and not latest:
            return
        if latest and time.monotonic() > shrinking_until:
            return
        found.cases += 1
        before = time.monotonic()
        try:
            with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=scratch) as folder:
                warnings.simplefilter("ignore")
                target.read(case, Path(folder))
        except UserError:
            found.refused += 1
        except Exception as error:
            where = _where(error)
            if where in found.faults:
                return
            if not latest:
                shrinking_until = time.monotonic() + 20
            latest[where] = f"{type(error).__name__}: {error}"[:300] + f" <- {case!r:.600}"
            raise
        finally:
            took = time.monotonic() - before
            found.slowest = max(found.slowest, took)
            if took > SLOW and "slow" not in found.faults:
                found.faults["slow"] = {"example": f"{took:.0f} s <- {case!r:.600}"}

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            attempt()
    except BaseException as error:  # hypothesis gives several faults as a group
        if isinstance(error, KeyboardInterrupt):
            raise
        if not latest:
            raise
    for where, example in latest.items():
        found.faults[where] = {"example": example}


def _where(error: Exception) -> str:
    """The line of this project that an exception came through last."""
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "convrec_r1" in frame.filename or "fuzz" in frame.filename
    ]
    frame = ours[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.name}:{frame.lineno}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=2.0, help="for all targets together")
    options.add_argument("--target", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    options.add_argument("--seed", type=int, default=0)
    given_ = options.parse_args()
    logging.disable(logging.CRITICAL)
    results = {}
    for name in given_.target:
        found = hunt(TARGETS[name], seconds=60 * given_.minutes / len(given_.target), start=1000 * given_.seed)
        results[name] = vars(found)
        print(f"{name:<22} {found.cases:>7,} cases, {found.refused:>7,} refused, {found.seconds:>6.1f} s, "
              f"slowest {found.slowest:.2f} s, {len(found.faults)} faults", flush=True)  # fmt: skip
        for where, fault in found.faults.items():
            print(f"    {where}: {fault['example']}", flush=True)
    (HERE / "fuzz.json").write_text(json.dumps(results, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
    sys.exit(1 if any(found["faults"] for found in results.values()) else 0)


if __name__ == "__main__":
    main()
