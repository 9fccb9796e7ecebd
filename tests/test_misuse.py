"""The command line as people misuse it: exit status 2, one message that says what to do, no trace, nothing left behind."""

import json

import pytest
from support import SMOKE, assert_user_error, needs_no_tracer, run_command

pytestmark = pytest.mark.processes("misuse")


@needs_no_tracer
def test_an_unknown_key_and_a_bad_type(tmp_path):
    assert_user_error(run_command("rl.step=3", cwd=tmp_path), "rl.step")
    assert_user_error(run_command("rl.steps=lots", cwd=tmp_path), "lots")
    assert not (tmp_path / "outputs").exists()


def test_missing_files_and_contradictions(tmp_path):
    done = run_command("data=redial", "data.path=nowhere", "reward.kind=exp", cwd=tmp_path)
    assert_user_error(done, "data.path=nowhere", "reward.gamma")
    assert not (tmp_path / "outputs").exists()


def write_rows(folder, split: str, rows: list[str]) -> None:
    (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def row(number: int, title: str = "Heat", year: int = 1995) -> str:
    return json.dumps(
        {"id": f"c{number}", "messages": [{"role": "user", "content": "hi"}], "ground_truth": [[title, year]]}
    )


@pytest.fixture
def own_data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "catalog.csv").write_text("title,year\nHeat,1995\nAlien,1979\n")
    for start, split in ((0, "train"), (10, "validation"), (20, "test")):
        write_rows(folder, split, [row(start + i) for i in range(6)])
    return folder


def jsonl_run(tmp_path, folder, *more: str):
    return run_command(
        *SMOKE, "data=jsonl", f"data.path={folder}", f"data.catalog={folder / 'catalog.csv'}", "hydra.run.dir=run", *more,
        cwd=tmp_path,
    )  # fmt: skip


def test_a_malformed_row_is_named_by_file_and_line(tmp_path, own_data):
    write_rows(own_data, "train", [row(0), row(1), '{"id": "c2", "messages": "hi"'])
    assert_user_error(jsonl_run(tmp_path, own_data), "train.jsonl", "line 3")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_an_empty_split_is_named(tmp_path, own_data):
    (own_data / "test.jsonl").unlink()
    assert_user_error(jsonl_run(tmp_path, own_data), "test", "no conversations")


def test_a_catalog_of_something_else_is_refused(tmp_path, own_data):
    (own_data / "catalog.csv").write_text("title,year\nEmma,1815\n")
    assert_user_error(jsonl_run(tmp_path, own_data), "none of the", "data.catalog")


def test_a_users_own_data_trains(tmp_path, own_data):
    done = jsonl_run(tmp_path, own_data)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_that_cannot_be_reached(tmp_path):
    done = run_command(*SMOKE, "model=nobody/nothing", "hydra.run.dir=run", cwd=tmp_path)
    assert_user_error(done, "nobody/nothing", "model=tiny")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_help_names_groups_and_commands(tmp_path):
    done = run_command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "algo: " in done.stdout
