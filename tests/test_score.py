"""task=score: lists that any system wrote get the numbers that a policy with these lists would get."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_files import DATA, real_data, write_rows
from support import PATHS, assert_user_error, make_config, run_command, unresolved_config
from test_prepared import write_files

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl, write_json
from convrec_r1.config.checks import problems
from convrec_r1.config.parts import evaluator, matching
from convrec_r1.config.resolve import resolve
from convrec_r1.data import movieland
from convrec_r1.data.load import load_data
from convrec_r1.evaluate.config import Missing
from convrec_r1.evaluate.given import IDS, LISTS, Given, assign, read
from convrec_r1.lists import Item, format
from convrec_r1.run.folder import RunFolder
from convrec_r1.tasks.kept import kept
from convrec_r1.tasks.score import score

SIZES = {"train": 60, "validation": 5, "test": 20}
SMALL = (*(f"data.{split}_size={size}" for split, size in SIZES.items()), "n=5", "logger=none")
HEAT, ALIEN, NINE = Item("Heat", 1995), Item("Alien", 1979), Item("9")
TEXTS = {"a": format([HEAT, ALIEN]), "b": format([NINE])}


def rows(id_key: str = "id", list_key: str = "text", form=lambda text: text) -> list[dict]:
    return [{id_key: name, list_key: form(text)} for name, text in TEXTS.items()]


@pytest.mark.parametrize("id_key", IDS)
@pytest.mark.parametrize("list_key", LISTS)
def test_rows_with_any_of_the_keys(tmp_path, id_key, list_key):
    assert read(write_rows(tmp_path / "x.jsonl", *rows(id_key, list_key))).texts == TEXTS


ITEM_FORMS = {
    "strings": lambda text: text.split("\n"),
    "pairs": lambda text: [[title, int(year) if year else None] for title, year in split(text)],
    "years in text": lambda text: [{"title": title, "year": year} for title, year in split(text)],
}


def split(text: str) -> list[tuple[str, str]]:
    return [(line.partition(" (")[0], line.partition(" (")[2].rstrip(")")) for line in text.split("\n")]


@pytest.mark.parametrize("form", ITEM_FORMS.values(), ids=ITEM_FORMS)
def test_items_in_any_form(tmp_path, form):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(rows("conversation", "items", form)))
    assert read(file).texts == TEXTS
    file.write_text(json.dumps({name: form(text) for name, text in TEXTS.items()}))
    assert read(file).texts == TEXTS


TABLES = {
    "texts.csv": 'ID,text\na,"Heat (1995)\nAlien (1979)"\nb,9\n',
    "items.csv": "conversation_id,title,year\na,Heat,1995\na,Alien,1979\nb,9,\n",
    "ranked.tsv": "id\ttitle\tyear\trank\na\tAlien\t1979\t2\nb\t9\t\t1\na\tHeat\t1995\t1\n",
    "semicolons.csv": "\ufeffid;title;year;rank\na;Heat;1995;1\na;Alien;1979;2\nb;9;;1\n",
    "texts.tsv": 'id,text\na,"Heat (1995)\nAlien (1979)"\nb,9\n',
    "bars.csv": "id|title|year\na|Heat|1995\na|Alien|1979\nb|9|\n",
    "marked.json": "\ufeff" + json.dumps(TEXTS),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    assert read(tmp_path / name).texts == TEXTS


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8"])
def test_encodings_of_spreadsheets(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes("id;title;year\nc;Am\u00e9lie;2001\n".encode(encoding))
    (tmp_path / "x.json").write_bytes('{"c": "Am\u00e9lie (2001)"}'.encode(encoding))
    (tmp_path / "x.jsonl").write_bytes('{"id": "c", "text": "Am\u00e9lie (2001)"}\n'.encode(encoding))
    for kind in ("csv", "json", "jsonl"):
        assert read(tmp_path / f"x.{kind}").texts == {"c": "Am\u00e9lie (2001)"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_faults_are_told_together(tmp_path, kind):
    bad = [{"id": " ", "text": "Heat"}] * 12
    content = {"json": json.dumps(bad), "csv": "id,text\n" + " ,Heat\n" * 12}
    (tmp_path / f"x.{kind}").write_text(content.get(kind, "\n".join(map(json.dumps, bad))))
    with pytest.raises(UserError, match=r"12 faults, the first 10:") as error:
        read(tmp_path / f"x.{kind}")
    assert str(error.value).count('"id" is blank') == 10


def test_a_file_without_text_and_a_folder_without_files(tmp_path):
    with pytest.raises(UserError, match=r"holds no file .it needs one text file a conversation, named by its id"):
        read(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\0\0\xff\0")
    with pytest.raises(UserError, match=r"a.png is not a text file"):
        read(tmp_path)


def test_a_folder_with_a_file_a_conversation(tmp_path):
    for name, text in {"a.txt": TEXTS["a"], "b": TEXTS["b"], "thread.1.md": "Heat", ".hidden": "x"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(tmp_path).texts == TEXTS | {"thread.1": "Heat"}


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        (
            "x.jsonl",
            '{"id": "a", "text": "Heat"}\n{"id": 1}\n',
            ["x.jsonl, line 2", "items, list", "Keys of this row: id"],
        ),
        ("x.jsonl", '{"text": "Heat"}', ["line 1", "the conversation's id is missing", "conversation_id"]),
        ("x.jsonl", '{"id": "a", "items": [["Heat", 1995], 7]}', ["line 1", '"items", entry 2', "found int 7"]),
        ("x.jsonl", '{"id": "a", "items": ["Heat", " "]}', ["line 1", "entry 2", "blank"]),
        ("x.jsonl", '{"id": "a", "text": 5}', ["line 1", '"text" must be a text or a list of items, found int 5']),
        ("x.jsonl", '{"id": "a", "te', ["x.jsonl, line 1", "not valid JSON"]),
        ("x.json", '{"a": "Heat",\n "b": }', ["x.json, line 2", "not valid JSON"]),
        ("x.json", "7", ["an object {id: list}"]),
        ("x.json", '["Heat"]', ["x.json, entry 1", "an object with an id and a list"]),
        ("x.csv", "id,title,rank\na,Heat,first\n", ["x.csv, row 1", '"rank" must be a whole number']),
        ("x.csv", "", ["not a table with a header"]),
        ("x.txt", "Heat", ["give a .jsonl, .json, .csv or .tsv file", "found .txt"]),
        ("x.json", "{}", ["holds no lists"]),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, fragments):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_no_list_is_lost_or_added_silently():
    asked = movieland.load(n_items=5, sizes=SIZES)["test"][:4]
    first, second, third, fourth = (conversation.id for conversation in asked)
    given = Given({"zzz": "Heat (1995)", first: "A (1990)", third: " \n", second: "B (1990)"}, {second: "line 9"})
    assigned = assign(given, asked, Missing.empty, "x on test")
    assert assigned.texts == ["A (1990)", "B (1990)", " \n", ""]
    assert assigned.counts == {"given": 4, "missing": 1, "unknown": 1, "repeated": 1, "empty": 1}
    for note, said in zip(assigned.notes, (fourth, "zzz", "line 9", third), strict=True):
        assert said in note
    assert "counted as empty lists" in assigned.notes[0]
    fewer = assign(given, asked, Missing.leave_out, "x on test")
    assert [c.id for c in fewer.conversations] == [first, second, third]
    assert fewer.texts == assigned.texts[:3]
    assert "score.missing=leave_out" in fewer.notes[0]
    with pytest.raises(UserError, match=r"(?s)x on test: none of the ids.*zzz.*movieland-test"):
        assign(Given({"zzz": "Heat (1995)"}), asked, Missing.empty, "x on test")


def test_the_first_of_several_lists_counts_and_equal_ones_are_no_fault(tmp_path):
    file = write_rows(tmp_path / "x.jsonl", *rows(), *rows(), {"id": "a", "text": "Other (2000)"})
    found = read(file)
    assert found.texts == TEXTS
    assert found.repeated == {"a": "x.jsonl, line 5"}


def test_a_score_that_failed_is_not_resumed(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "a"}')
    for _ in range(2):
        failed = run_command("task=score", "lists=x.jsonl", *SMALL, cwd=tmp_path)
        assert_user_error(failed, "x.jsonl, line 1")
        assert "Resuming" not in failed.stdout


def test_what_a_score_needs():
    assert any("task=score needs lists=FILE" in line for line in problems(unresolved_config("task=score")))
    wrong = problems(unresolved_config("task=score", "lists=nowhere.jsonl"))
    assert any("lists=nowhere.jsonl: no such file" in line for line in wrong)
    wrong = problems(unresolved_config("task=score", f"lists={__file__}", "name=popularity"))
    assert any("name=popularity is the name of a baseline" in line for line in wrong)
    assert problems(unresolved_config("task=score", f"lists={__file__}", "name=mine")) == []


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with two files of lists for movieland's test split, and their scores."""
    home = tmp_path_factory.mktemp("score")
    data = movieland.load(n_items=5, sizes=SIZES)
    some = list(data.catalog)[:4]
    for name, front in {"right": lambda c: c.ground_truth[:1], "wrong": lambda c: []}.items():
        lists = [{"id": c.id, "items": [*map(list, front(c)), *map(list, some)]} for c in data["test"]]
        write_rows(home / f"{name}.jsonl", *lists)
        done = run_command("task=score", f"lists={name}.jsonl", f"name=Always {name}", *SMALL, cwd=home)
        assert done.returncode == 0, done.stderr
    return home


def folder_of(home: Path, name: str) -> Path:
    (found,) = home.glob(f"outputs/main/score-Always_{name}-movieland-*")
    return found


@pytest.mark.processes
def test_scores_are_those_of_a_policy_with_these_lists(written):
    folder = folder_of(written, "right")
    cfg = make_config(*SMALL)
    data = load_data(cfg.data, cfg.n, matching(cfg))
    texts = list(read(written / "right.jsonl").texts.values())
    expected = evaluator(cfg, data).score(texts, data["test"])
    summary = read_json(folder / "summary.json")
    assert summary["metrics"]["Always right"] == pytest.approx(expected.summary())
    assert summary["metrics"]["Always right"]["rank/1/hit"] == 1
    assert set(summary["metrics"]) == {"popularity", "Always right"}
    assert [row["text"] for row in read_jsonl(folder / "eval" / "test.jsonl")] == texts
    assert summary["lists"]["missing"] == 0
    report = (folder / "report.md").read_text()
    assert report.startswith("# Always right, movieland\n")
    assert "from right.jsonl" in report
    assert "greedy" not in report


@pytest.mark.processes
def test_a_runs_own_evaluation_scored_again_is_the_same(written):
    again = run_command(
        "task=score", f"lists={folder_of(written, 'right')}/eval/test.jsonl", "study=again", *SMALL, cwd=written
    )
    assert again.returncode == 0, again.stderr
    (folder,) = written.glob("outputs/again/score-test-*")
    scored = read_json(folder / "summary.json")["metrics"]["test"]
    assert scored == read_json(folder_of(written, "right") / "summary.json")["metrics"]["Always right"]


@pytest.mark.processes
def test_scores_take_their_place_in_a_comparison(written):
    done = run_command("task=compare", "runs=outputs/main/*", "compare.metric=ndcg@5", cwd=written)
    assert done.returncode == 0, done.stderr
    report = (written / "outputs" / "main" / "comparison" / "report.html").read_text()
    for said in ("Popularity", "Always right", "Always wrong", "2 systems on movieland"):
        assert said in report
    table = (written / "outputs" / "main" / "comparison" / "metrics.csv").read_text()
    assert "Always right,recall@5" in table
    assert "algo.name" not in report, "the config of a policy says nothing about lists from elsewhere"


@pytest.mark.processes
def test_lists_that_changed_are_scored_again(written, tmp_path):
    for texts in (["Heat (1995)"], ["Alien (1979)"]):
        write_rows(tmp_path / "x.jsonl", {"id": "movieland-test-00000", "items": texts})
        done = run_command("task=score", "lists=x.jsonl", "hydra.run.dir=here", *SMALL, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert read_jsonl(tmp_path / "here" / "eval" / "test.jsonl")[0]["text"] == texts[0]
    assert read_json(tmp_path / "here" / "summary.json")["lists"]["missing"] == 19
    assert "counted as empty lists" in (tmp_path / "here" / "report.md").read_text()


def test_prepared_data_that_a_score_uses_is_not_unused(tmp_path, monkeypatch):
    """As for training. What an interrupted score has read does not bind the next one."""
    monkeypatch.setattr("convrec_r1.data.prepared.LEAST", 0)
    monkeypatch.setenv("CONVREC_R1_CACHE", str(tmp_path / "none"))
    files, outputs = write_files(tmp_path / "data"), f"outputs={tmp_path / 'outputs'}"
    lists = write_rows(tmp_path / "x.jsonl", {"id": "test0", "items": [["Heat", 1995]]})
    cfg = make_config("task=score", f"lists={lists}", "data=jsonl", f"data.path={files}", "n=3", "logger=none", outputs)
    folder = RunFolder(tmp_path / "outputs" / "main" / "run")
    folder.path.mkdir(parents=True)
    write_json(folder.inputs, {"data": {"test": "another"}, "uses": ["gone"]})
    score(cfg, folder, lambda: pytest.fail("a score has no tracker"))
    (prepared,) = (path for path in (tmp_path / "outputs" / "prepared").iterdir() if path.is_dir())
    found = read_json(folder.inputs)
    assert found["uses"] == [prepared.name]
    assert {"train", "test", "catalog"} < found["data"].keys()
    (kept_one,) = kept(make_config("task=kept", "kept.clear=[unused]", outputs))
    assert (kept_one.folder.name, kept_one.users) == (prepared.name, ("main/run",))
    assert prepared.exists()


@pytest.mark.processes
def test_faults_end_with_status_2_and_leave_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "movieland-test-00000", "items": [7]}\n')
    done = run_command("task=score", "lists=x.jsonl", *SMALL, cwd=tmp_path)
    assert_user_error(done, "x.jsonl, line 1", '"items", entry 1')


@pytest.mark.processes
def test_it_starts_fast_without_a_model(written):
    """Lightning and models take seconds to import."""
    arguments = ["task=score", "lists=right.jsonl", "study=fast", *SMALL]
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}; import convrec_r1.cli as c; c.main(); "
        "heavy = {'pytorch_lightning', 'wandb', 'convrec_r1.policy.policy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "", **PATHS}, cwd=written
    )
    assert done.returncode == 0, done.stderr


@real_data
def test_real_answers_of_gpt_4():
    """With the titles that a conversation names already, as older papers score, there are more conversations and hits."""
    file = DATA / "llm_outputs" / "inspired_gpt-4.jsonl"
    answers = [row["response"] for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())]
    asked = map(json.loads, (DATA / "cikm23" / "inspired" / "test.jsonl").read_text(encoding="utf-8").splitlines())
    given = Given(dict(zip((f"{row['dialog_id']}-{row['turn_id']}" for row in asked), answers, strict=True)))
    hits = {}
    for exclude, count in {"true": 190, "false": 227}.items():
        path = f"data.path={DATA / 'cikm23' / 'inspired'}"
        cfg = make_config("data=cikm23", path, f"data.exclude_seen={exclude}", "match=normalised")
        data = load_data(cfg.data, cfg.n, matching(cfg), need=["test"])
        assigned = assign(given, data["test"], Missing.empty, "answers")
        assert assigned.counts == {"given": 228, "missing": 0, "unknown": 228 - count, "repeated": 0, "empty": 0}
        hits[exclude] = sum(
            sum(sample.hits) for sample in evaluator(cfg, data).score(assigned.texts, data["test"]).samples
        )
        assert any(conversation.seen for conversation in data["test"]) is (exclude == "true")
    assert 0 < hits["true"] < hits["false"]


def test_the_log_says_how_titles_are_matched():
    """The default depends on the recipe, which no other line of a scoring run's log names."""
    (said,) = resolve(unresolved_config("task=score", "lists=x"))
    assert said.startswith("match: normalised")
    assert resolve(unresolved_config("task=score", "lists=x", "match=folded")) == []
