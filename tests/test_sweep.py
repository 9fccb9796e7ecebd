"""Sweeps as people run them: one command, many runs, each in a process of its own; and what is told when some go wrong."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support import (
    SMALL_MODEL,
    SMOKE,
    Command,
    assert_user_error,
    needs_no_tracer,
    run_command,
    run_python,
    start_command,
)

from convrec_r1.base.files import read_json, read_jsonl
from convrec_r1.run.checkpoints import damage
from convrec_r1.run.forkserver import ADDRESS, start
from convrec_r1.studies.ledger import CELL, SWEEP, Ledger, announce, explain

CELLS = (*SMOKE, "rl.steps=2", "eval.baselines=[]", "eval.resamples=20", "study=sweep", *SMALL_MODEL)  # fmt: skip


def summaries(cwd: Path) -> dict[str, dict]:
    return {p.parent.name: json.loads(p.read_text()) for p in cwd.glob("outputs/sweep/*/summary.json")}


def test_the_ledger_tells_the_complete_from_the_failed_and_the_killed(tmp_path, monkeypatch):
    monkeypatch.setenv(SWEEP, str(tmp_path / "study" / ".sweeps" / "1"))
    book = Ledger.current()
    book.folder.mkdir(parents=True)
    done, failed, killed = (book.begin(number, tmp_path / f"run{number}") for number in range(3))
    done.end(0)
    monkeypatch.setenv(CELL, str(failed.file))
    explain("disk full")
    failed.end(1)
    assert [(c.number, c.folder.name, c.status, c.why) for c in book.cells()] == [
        (0, "run0", 0, ""), (1, "run1", 1, "disk full"), (2, "run2", None, ""),
    ]  # fmt: skip
    monkeypatch.setenv(CELL, str(killed.file))
    announce()
    assert [cell.pid for cell in book.cells()] == [None, None, os.getpid()]
    assert book.sweep_dir == tmp_path / "study"
    book.close()
    assert not (tmp_path / "study" / ".sweeps").exists()


def test_outside_of_a_sweep_nobody_keeps_a_ledger(monkeypatch):
    monkeypatch.delenv(CELL, raising=False)
    explain("nothing to write to")  # and nothing is written
    monkeypatch.delenv(SWEEP, raising=False)
    with pytest.raises(KeyError):
        Ledger.current()


@pytest.mark.processes
def test_a_sweep_outlives_a_refused_run_and_ends_with_the_comparison(tmp_path):
    arguments = ("-m", *CELLS, "algo=grpo,rank_grpo", "rl.prompts_per_step=2,0")
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 of 4 runs failed" in done.stderr
    assert "rl.prompts_per_step=0: must be at least 1" in done.stdout
    assert sorted(name.split("-")[0] for name in summaries(tmp_path)) == ["grpo", "rank_grpo"]
    assert len(list((tmp_path / "outputs" / "warm_starts").glob("*/warm_start.json"))) == 1, "one warm start for both"
    report = tmp_path / "outputs" / "sweep" / "comparison" / "report.html"
    assert "Rank-GRPO" in report.read_text(encoding="utf-8")
    for name in summaries(tmp_path):
        rows = [r for r in read_jsonl(tmp_path / "outputs" / "sweep" / name / "metrics.jsonl") if r["split"] == "train"]
        assert [r["step"] for r in rows] == [1, 2]
    # The same command again: nothing that is complete is run again, and the report is made anew.
    report.unlink()
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.count("This run is complete") == 2
    assert report.exists()


@pytest.mark.slow(reason="starts Python twice: the command, and the fork server that it starts for its cells")
def test_a_sweep_as_people_start_it(tmp_path):
    done = run_python("-m", *CELLS, "algo=sft", "sft.batch_size=2,0", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "1 of 2 runs failed" in done.stderr
    assert len(summaries(tmp_path)) == 1


@pytest.mark.processes
def test_a_run_that_is_killed_is_reported_and_is_the_only_one_to_be_run_again(tmp_path):
    arguments = ["-m", *CELLS, "rl.steps=5", "eval.every=0", "seed=1,2"]
    sweep = start_command(*arguments, cwd=tmp_path)
    begun = tmp_path / "outputs" / "sweep"
    sweep.until(lambda: list(begun.glob("*-s1-*/metrics.jsonl")))
    (cell,) = begun.glob(".sweeps/*/0000.json")
    os.kill(read_json(cell)["pid"], signal.SIGKILL)
    assert sweep.wait() == 1, sweep.said
    assert "killed" in sweep.stdout
    assert "signal 9" in sweep.stdout
    assert "1 of 2 runs failed" in sweep.stderr
    (survivor,) = summaries(tmp_path)
    assert "-s2-" in survivor
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("This run is complete") == 1
    assert "Resuming" in done.stdout
    assert len(summaries(tmp_path)) == 2


@pytest.mark.processes
def test_a_signal_to_a_sweep_reaches_its_run_which_saves(tmp_path):
    sweep = start_command("-m", *CELLS, "rl.steps=200", "eval.every=0", "seed=1,2", cwd=tmp_path)
    trained = tmp_path / "outputs" / "sweep"
    sweep.until(lambda: any('"train"' in file.read_text() for file in trained.glob("*-s1-*/metrics.jsonl")))
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(60) == 130, sweep.said
    (last,) = trained.glob("*-s1-*/checkpoints/last")
    assert damage(last.resolve()) is None
    assert summaries(tmp_path) == {}
    assert not list(trained.glob("*-s2-*/metrics.jsonl"))


@pytest.mark.processes
def test_a_cell_starts_without_a_fork_server_too(tmp_path):
    """Its address is another machine's, or it was killed."""
    process = start(["--help"], {**os.environ, "COLUMNS": "80", ADDRESS: str(tmp_path / "nobody")}, forked=True)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0


@pytest.mark.processes
def test_a_launcher_of_other_processes_keeps_the_same_books(tmp_path):
    """One of three is refused. The submitit launcher's local executor is what stands in for Slurm."""
    cells = (*CELLS, "algo=sft", "sft.steps=1", "sft.batch_size=2,1,0", "data.test_size=2", "eval.resamples=10")
    done = run_command("-m", *cells, "hydra/launcher=submitit_local", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert len(summaries(tmp_path)) == 2
    assert (tmp_path / "outputs" / "sweep" / "comparison" / "report.html").exists()
    assert not list((tmp_path / "outputs" / "sweep").glob(".sweeps/*"))


RAY = ("-m", *CELLS, "hydra/launcher=ray", "hydra.launcher.cpus=2", "hydra.launcher.gpus=0")


@pytest.mark.processes
def test_cells_on_ray_go_side_by_side_and_outlive_one_that_is_killed(tmp_path):
    """One of four is refused, one is killed with -9, and what they say arrives."""
    few = ("algo=sft", "sft.steps=1", "sft.batch_size=2,1,0,3", "data.test_size=2", "eval.resamples=10")
    sweep = start_command(*RAY, *few, cwd=tmp_path)
    pids = _pids(sweep, tmp_path, 2)
    os.kill(pids[0], signal.SIGKILL)
    assert sweep.wait() == 2, sweep.said
    assert "2 of 4 runs failed" in sweep.stderr
    assert "signal 9" in sweep.stdout
    assert "sft.batch_size=0: must be at least 1" in sweep.stderr, "what a cell says arrives"
    assert len(summaries(tmp_path)) == 2
    assert (tmp_path / "outputs" / "sweep" / "comparison" / "report.html").exists()
    assert not list((tmp_path / "outputs" / "sweep").glob(".sweeps/*"))


@pytest.mark.processes
def test_a_signal_to_a_sweep_on_ray_reaches_its_cells_which_save(tmp_path):
    sweep = start_command(*RAY, "rl.steps=200", "eval.every=0", "seed=1,2,3", cwd=tmp_path)
    trained = tmp_path / "outputs" / "sweep"
    sweep.until(lambda: sum('"train"' in file.read_text() for file in trained.glob("*/metrics.jsonl")) == 2)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(60) == 130, sweep.said
    assert sorted(last.parents[1].name.split("-s")[1][0] for last in trained.glob("*/checkpoints/last")) == ["1", "2"]
    assert not list(trained.glob("*-s3-*/metrics.jsonl"))
    assert summaries(tmp_path) == {}


def _pids(sweep: Command, cwd: Path, number: int) -> list[int]:
    """Process ids of the first cells of a sweep, as soon as they run."""

    def found() -> list[int]:
        records = [read_json(file) for file in sorted(cwd.glob("outputs/sweep/.sweeps/*/[0-9]*.json"))]
        return [record["pid"] for record in records if record["pid"]]

    sweep.until(lambda: len(found()) >= number)
    return found()[:number]


@pytest.mark.processes
def test_optuna_searches_by_the_validation_metric(tmp_path):
    search = (
        "experiment=search",
        *CELLS,
        "rl.steps=1",
        "eval.every=1",
        "eval.metric=ndcg@5",
        "hydra.sweeper.n_trials=2",
    )
    done = run_command(*search, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = list(summaries(tmp_path).values())
    assert len(found) == 2
    result = (tmp_path / "outputs" / "sweep" / "optimization_results.yaml").read_text()
    best = max(summary["best"]["value"] for summary in found)
    assert f"best_value: {best}" in result
    assert "rl.lr" in result


@needs_no_tracer
@pytest.mark.processes
def test_a_sweep_over_a_key_that_does_not_exist_starts_nothing(tmp_path):
    assert_user_error(run_command("-m", *CELLS, "rl.step=1,2", cwd=tmp_path), "rl.step")
    assert summaries(tmp_path) == {}
