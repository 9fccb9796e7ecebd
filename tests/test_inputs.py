"""What a run is made from: a folder of other data, another policy or other code is not returned or resumed in silence."""

import json
import shutil
from pathlib import Path

import pytest
from support import SMALL_MODEL, SMOKE, assert_user_error, make_config, run_command, tiny_policy

from convrec_r1.base.digest import of_code, of_files, of_model, of_rows
from convrec_r1.base.files import read_json, write_json
from convrec_r1.config.parts import evaluation_key
from convrec_r1.data.adapters import jsonl
from convrec_r1.data.load import digests, files_of, load_data
from convrec_r1.distill.demonstrations import key, read_besides
from convrec_r1.distill.pipeline import Setup
from convrec_r1.run.folder import RunFolder
from convrec_r1.tasks import inputs
from convrec_r1.tasks.warm_start import warm_start_key

FILMS = [["Heat", 1995], ["Ronin", 1998], ["Thief", 1981], ["Collateral", 2004], ["Drive", 2011], ["Baby Driver", 2017]]


def write_data(folder: Path) -> Path:
    """Three small files of conversations, and a catalog with a column of genres."""
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("validation", 4), ("test", 6)):
        rows = [
            {"id": f"{split}{i}", "messages": [{"role": "user", "content": f"Like film {i % 6}?"}],
             "ground_truth": [FILMS[i % 6]], "demonstration": [FILMS[i % 6], FILMS[(i + 1) % 6]]}
            for i in range(count)
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{title},{year},crime" for title, year in FILMS]
    (folder / "catalog.csv").write_text("\n".join(["title,year,genres", *lines]) + "\n")
    return folder


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


# -- digests ---------------------------------------------------------------------------------------------------------------


def test_files_have_the_same_digest_wherever_and_whenever_they_are(tmp_path):
    first = write_data(tmp_path / "a")
    before = of_files(first)
    second = Path(shutil.copytree(first, tmp_path / "b"))
    (second / ".lock").touch()
    assert of_files(second) == before
    replaced(second / "catalog.csv", "Heat", "Heal")  # as many bytes
    assert of_files(second) != before
    (first / "train.jsonl").rename(first / "other.jsonl")
    assert of_files(first) != before
    assert of_files(tmp_path / "none") == of_files(tmp_path / "nor this")


def test_code_has_the_same_digest_without_its_comments(tmp_path, monkeypatch):
    monkeypatch.setattr("convrec_r1.base.digest._PACKAGE", tmp_path)
    (tmp_path / "room").mkdir()
    file, beside = tmp_path / "room" / "a.py", tmp_path / "b.py"
    file.write_text("x = 1\n")
    beside.write_text("y = 1\n")

    def found(*rooms: str, without: tuple[str, ...] = ()) -> str:
        of_code.cache_clear()
        return of_code(*rooms, without=without)

    room, whole, rest = found("room"), found(), found(without=("room",))
    file.write_text("# why\n\nx = 1\n")
    assert (found("room"), found(), found(without=("room",))) == (room, whole, rest)
    file.write_text("x = 2\n")
    assert found("room") != room
    assert found() != whole
    assert found(without=("room",)) == rest == found("b")
    of_code.cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("train.jsonl", "film 1?", "film 7?", {"train"}),
        ("validation.jsonl", '"user"', '"assistant"', {"validation"}),
        ("test.jsonl", "[\"Heat\", 1995]], \"demo", "[\"Thief\", 1981]], \"demo", {"test"}),
        ("test.jsonl", '"demonstration": [["Heat', '"seen": ["Ronin"], "demonstration": [["Heat', {"test"}),
        ("train.jsonl", '"demonstration": [["Heat", 1995]', '"demonstration": [["Drive", 2011]', {"demonstrations"}),
        ("catalog.csv", "Drive,2011", "Drive,2012", {"catalog"}),
        ("catalog.csv", "genres", "genre", set()),
    ],
)  # fmt: skip
def test_each_part_of_a_dataset_has_a_digest_of_its_own(tmp_path, file, old, new, changes):
    folder = write_data(tmp_path / "data")
    before = digests(jsonl.Jsonl(folder).load())
    assert digests(jsonl.Jsonl(folder).load()) == before
    replaced(folder / file, old, new)
    after = digests(jsonl.Jsonl(folder).load())
    assert {name for name in before if before[name] != after[name]} == changes


def test_of_a_single_file_only_the_files_beside_it_are_looked_at(tmp_path):
    """Not the folders: beside it may be outputs/, where other runs write and delete files meanwhile."""
    data = write_data(tmp_path / "data")
    (data / "outputs" / "run").mkdir(parents=True)
    (data / "outputs" / "run" / "metrics.jsonl").write_text("{}")
    adapter = jsonl.Jsonl(data / "train.jsonl")
    assert [file.name for file in files_of(adapter) or ()] == [
        "catalog.csv", "test.jsonl", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip


def test_rows_of_any_text_have_a_digest(tmp_path):
    assert of_rows([["broken \ud83d emoji", None, 1]]) != of_rows([["broken emoji", None, 1]])
    assert of_rows([["a"], ["b"]]) != of_rows([["b"], ["a"]])


def test_a_model_of_the_hub_is_the_commit_that_its_name_means(tmp_path, monkeypatch):
    import huggingface_hub

    hub = tmp_path / "models--some--model"
    for commit in ("a" * 40, "b" * 40):
        (hub / "snapshots" / commit).mkdir(parents=True)
        (hub / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **k: real(*a, cache_dir=tmp_path, local_files_only=True, **k)
    )
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a" * 40)
    assert of_model("some/model") == f"some/model@{'a' * 40}"
    (hub / "refs" / "main").write_text("b" * 40)
    assert of_model("some/model") == f"some/model@{'b' * 40}"
    assert of_model("other/model") == "other/model@None", "not known before it is loaded"


# -- keys of what runs share -----------------------------------------------------------------------------------------------


def config(data: Path, *more: str):
    return make_config("data=jsonl", f"data.path={data}", "debug=smoke", *more)


def test_a_warm_start_is_another_one_with_other_weights_or_code(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    model = tmp_path / "model"
    tiny_policy(seed=1).save(model)
    cfg = config(data, f"model={model}", "model.max_prompt_length=192")
    loaded = load_data(cfg.data, cfg.n)
    before, evaluated = warm_start_key(cfg, loaded), evaluation_key(cfg, loaded)
    moved = Path(shutil.copytree(model, tmp_path / "elsewhere" / "named"))
    elsewhere = config(data, f"model={moved}", "model.max_prompt_length=192")
    assert warm_start_key(elsewhere, loaded) == before, "where the weights stand plays no part"
    tiny_policy(seed=2).save(model)
    assert warm_start_key(cfg, loaded) != before
    assert evaluation_key(cfg, loaded) == evaluated, "it is kept with the warm start, whose key it stands under"
    for place, find, known in (
        ("convrec_r1.tasks.warm_start.of_code", warm_start_key, warm_start_key(cfg, loaded)),
        ("convrec_r1.config.parts.of_code", evaluation_key, evaluated),
    ):
        with monkeypatch.context() as other:
            other.setattr(place, lambda *rooms: "other")
            assert find(cfg, loaded) != known


def test_evaluations_are_others_once_anything_they_read_has_changed(tmp_path):
    folder = write_data(tmp_path / "data")
    cfg = config(folder)
    known = {evaluation_key(cfg, load_data(cfg.data, cfg.n))}
    for file, old, new in (
        ("catalog.csv", "Drive,2011", "Drive,2012"),
        ("train.jsonl", "film 1?", "film 7?"),
        ("test.jsonl", '"user"', '"assistant"'),
        ("test.jsonl", '"id": "test5"', '"cluster": "test4", "id": "test5"'),
    ):
        replaced(folder / file, old, new)
        known.add(evaluation_key(cfg, load_data(cfg.data, cfg.n)))
    assert len(known) == 5
    data = load_data(cfg.data, cfg.n)
    other = config(folder, "data.instruction='List {n} films.'")
    assert evaluation_key(other, data) not in known


def test_demonstrations_are_others_once_anything_that_stage_1_reads_has_changed(tmp_path):
    folder, file, model = write_data(tmp_path / "data"), tmp_path / "plots.csv", tmp_path / "embedder"
    file.write_text("title,year,plot\nHeat,1995,A thief and a policeman.\n")
    model.mkdir()
    (model / "config.json").write_text("{}")

    def keys(*more: str) -> str:
        cfg = config(folder, "embedder=sentence-transformers", f"embedder.model={model}", *more)
        setup = Setup(cfg.distill, cfg.embedder, cfg.data, cfg.match, cfg.n)
        return key(setup, cfg.teacher, load_data(cfg.data, cfg.n), "a teacher")

    known = {keys(), keys(f"distill.metadata={file}")}
    file.write_text(file.read_text().replace("thief", "robber"))
    known.add(keys(f"distill.metadata={file}"))
    replaced(folder / "catalog.csv", "Heat,1995,crime", "Heat,1995,drama")  # a column that the catalog itself ignores
    known.add(keys())
    (model / "config.json").write_text('{"changed": 1}')
    known.add(keys())
    replaced(folder / "validation.jsonl", "film 1?", "film 7?")
    known.add(keys())
    assert len(known) == 6
    replaced(folder / "test.jsonl", "film 1?", "film 7?")
    assert keys() in known, "Stage 1 does not read the test split"
    assert read_besides(
        Setup(make_config().distill, make_config().embedder, make_config().data, make_config().match, 5)
    )


# -- whole runs ------------------------------------------------------------------------------------------------------------

RUN = (*SMOKE, *SMALL_MODEL, "data=jsonl", "data.path=data", "eval.baselines=[]", "eval.every=0", "eval.resamples=20",
       "rl.steps=2", "hydra.run.dir=run")  # fmt: skip
contents = pytest.mark.processes("contents")
"""Marks the tests that share one run."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("made")
    write_data(cwd / "data")
    done = run_command(*RUN, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@pytest.fixture
def there(made, tmp_path) -> Path:
    """A copy of the run with its data: files of another time and inode."""
    return Path(shutil.copytree(made, tmp_path / "there", symlinks=True))


def cut_off(cwd: Path) -> None:
    (cwd / "run" / "summary.json").unlink()


@contents
@pytest.mark.parametrize("state", ["complete", "interrupted"])
def test_a_run_of_other_data_is_refused_and_named(there, state):
    if state == "interrupted":
        cut_off(there)
    else:
        again = run_command(*RUN, cwd=there)
        assert "This run is complete" in again.stdout, "copied files are the same data"
    for file, old, new in (
        ("test.jsonl", "film 1?", "film 7?"),
        ("catalog.csv", "Drive,2011", "Drive,2012"),
        ("train.jsonl", '"demonstration": [["Heat", 1995]', '"demonstration": [["Drive", 2011]'),
    ):
        replaced(there / "data" / file, old, new)
    said = assert_refused(there)
    for part in ("the test split", "the catalog", "the demonstrations"):
        assert part in said
    assert "the train split" not in said
    assert ("was made from" if state == "complete" else "began with") in said
    done = run_command(*RUN, "fresh=true", cwd=there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warm start: training" in done.stdout, "other demonstrations are another warm start"
    assert "This run is complete" in run_command(*RUN, cwd=there).stdout


def assert_refused(cwd: Path, *more: str) -> str:
    done = run_command(*RUN, *more, cwd=cwd)
    assert_user_error(done, "other contents", "fresh=true")
    return done.stderr


@contents
def test_code_that_changed_is_told_and_resumes_only_if_asked(there):
    file = there / "run" / "inputs.json"
    write_json(file, read_json(file) | {"code": {"version": "0.1.0", "sources": "of another day"}})
    done = run_command(*RUN, cwd=there)
    assert "was made by other code (version 0.1.0 then" in " ".join(done.stdout.split())
    assert done.returncode == 0
    cut_off(there)
    assert "the code of this package" in assert_refused(there)
    done = run_command(*RUN, "other_code=true", cwd=there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(file)["earlier_code"] == [{"version": "0.1.0", "sources": "of another day"}]


@contents
def test_an_evaluation_of_a_checkpoint_that_was_trained_again_is_another_one(there):
    evaluate = (
        "task=eval",
        "checkpoint=run",
        "logger=none",
        "eval.resamples=20",
        "eval.baselines=[]",
        "hydra.run.dir=judged",
    )
    assert run_command(*evaluate, cwd=there).returncode == 0
    assert "complete" in run_command(*evaluate, cwd=there).stdout
    policy = (there / "run" / "checkpoints" / "last").resolve()
    shutil.rmtree(policy / "policy")
    (policy / "manifest.json").unlink()
    tiny_policy(seed=5).save(policy / "policy")
    assert_user_error(run_command(*evaluate, cwd=there), "the checkpoint", "fresh=true")


@contents
def test_a_policy_to_start_from_and_a_folder_of_demonstrations_count_by_content(there):
    shutil.copytree((there / "run" / "checkpoints" / "last").resolve() / "policy", there / "start")
    (there / "mine" / "dataset").mkdir(parents=True)
    shutil.copy(there / "data" / "train.jsonl", there / "mine" / "dataset")
    own = ("warm_start=start", "data.demonstrations=mine", "hydra.run.dir=own")
    done = run_command(*RUN, *own, cwd=there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete" in run_command(*RUN, *own, cwd=there).stdout
    config = there / "start" / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    replaced(
        there / "mine" / "dataset" / "train.jsonl",
        '"demonstration": [["Heat',
        '"demonstration": [["Ronin", 1998], ["Heat',
    )
    said = assert_refused(there, *own)
    assert "the policy in warm_start" in said
    assert "the folder in data.demonstrations" in said


@contents
def test_what_is_kept_is_listed_with_its_runs_and_deleted_by_key(there):
    shutil.copytree(there / "run", there / "outputs" / "main" / "run", symlinks=True)
    (key,) = [path.name for path in (there / "outputs" / "warm_starts").iterdir() if path.is_dir()]
    listed = run_command("task=kept", cwd=there, CONVREC_R1_CACHE=str(there / "none"))
    assert listed.returncode == 0, listed.stderr
    rows = [line.split("│") for line in listed.stdout.splitlines() if "│" in line]
    columns = "|".join("".join(cells) for cells in zip(*rows, strict=True))  # a narrow terminal wraps words
    for said in (key, "warm_starts", "tiny on jsonl, seed 1", "main/run"):
        assert said.replace(" ", "") in columns.replace(" ", "")
    assert_user_error(run_command("task=kept", "kept.clear=[ffff]", cwd=there), "ffff", "task=kept")
    nothing = run_command("task=kept", "kept.clear=[unused]", cwd=there, CONVREC_R1_CACHE=str(there / "none"))
    assert nothing.returncode == 0, nothing.stderr
    assert "kept.clear=[unused]: there is nothing of it" in nothing.stdout
    assert any(key in line for line in nothing.stdout.splitlines()), "a key stands on one line"
    assert_user_error(run_command("task=kept", "kept.clear=unused", cwd=there), "It takes a list: kept.clear=[unused]")
    assert (there / "outputs" / "warm_starts" / key).exists(), "a run uses it"
    told = run_command(*RUN, "fresh=true", cwd=there)
    assert f"kept.clear=[{key}]" in "".join(told.stdout.split())
    deleted = run_command("task=kept", f"kept.clear=[{key[:6]}]", cwd=there, CONVREC_R1_CACHE=str(there / "none"))
    assert deleted.returncode == 0, deleted.stderr
    assert not list((there / "outputs" / "warm_starts").iterdir())


def test_a_run_of_an_older_version_is_returned_and_said_to_be_unknown(tmp_path, caplog):
    inputs.check_complete(make_config(), RunFolder(tmp_path))
    assert "not recorded" in caplog.text
