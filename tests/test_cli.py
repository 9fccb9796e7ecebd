"""The command line as people use it: real processes, and what they leave behind."""

import json

import pytest
from support import SMALL_MODEL, SMOKE, assert_user_error, run_command, run_python

from convrec_r1.base.files import read_jsonl
from convrec_r1.evaluate.scoring import Evaluation

pytestmark = pytest.mark.processes("smoke")

QUICK = ("eval.every=0", "rl.steps=1", "eval.baselines=[]", "eval.resamples=20", *SMALL_MODEL)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One smoke run of the main job, started as people start it, for several tests to look at."""
    cwd = tmp_path_factory.mktemp("smoke")
    done = run_python("debug=smoke", "logger=csv", "hydra.run.dir=run", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd, done


def test_a_run_leaves_behind_what_the_design_says(smoke):
    cwd, done = smoke
    run = cwd / "run"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "run.log",
        "report.md",
        "figures/run.png",
    ):
        assert (run / name).stat().st_size > 0, name
    assert (run / "checkpoints" / "last" / "policy" / "model.safetensors").exists()
    assert list((run / "rollouts").glob("rollouts-*.jsonl"))
    for name in ("test", "test.popularity", "test.zero_shot", "test.sft"):
        assert len(Evaluation.read_jsonl(run / "eval" / f"{name}.jsonl")) == 6
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert set(summary["metrics"]) == {"popularity", "zero_shot", "sft", "rank_grpo"}
    splits = {record["split"] for record in read_jsonl(run / "metrics.jsonl")}
    assert splits == {"sft", "train", "validation", "test"}
    assert "Rank-GRPO" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.name for path in run.rglob(".*")] == [".lock"], "no scratch files stay behind"


def test_the_same_command_finds_its_complete_run(smoke):
    cwd, _ = smoke
    before = (cwd / "run" / "summary.json").read_text()
    done = run_command("debug=smoke", "logger=csv", "hydra.run.dir=run", cwd=cwd)
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert (cwd / "run" / "summary.json").read_text() == before


def test_another_config_does_not_write_over_it(smoke):
    cwd, _ = smoke
    assert_user_error(
        run_command("debug=smoke", "hydra.run.dir=run", "rl.lr=0.5", cwd=cwd), "another config", "rl.lr", "fresh=true"
    )


def test_a_second_run_shares_the_warm_start_and_evaluates_from_a_run(smoke):
    cwd, _ = smoke
    done = run_command(*SMOKE, "algo=grpo", "eval.baselines=[]", "hydra.run.dir=other", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warm start: using" in done.stdout
    done = run_command("task=eval", "logger=none", "checkpoint=run", "hydra.run.dir=scored", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    again = Evaluation.read_jsonl(cwd / "scored" / "eval" / "test.jsonl")
    assert [s.text for s in again.samples] == [
        s.text for s in Evaluation.read_jsonl(cwd / "run" / "eval" / "test.jsonl").samples
    ]


@pytest.mark.parametrize("algo", ["sft", "dr_grpo", "gspo", "dapo", "rank_grpo_reference"])
def test_every_other_algorithm_runs(smoke, algo):
    cwd, _ = smoke
    done = run_command(*SMOKE, *QUICK, f"algo={algo}", f"hydra.run.dir={algo}", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (cwd / algo / "checkpoints" / "last" / "policy" / "config.json").exists()
    assert json.loads((cwd / algo / "summary.json").read_text())["algo"] == algo


def test_r1_zero_and_a_policy_by_path(smoke):
    cwd, _ = smoke
    done = run_command(*SMOKE, *QUICK, "warm_start=null", "hydra.run.dir=zero", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft" not in json.loads((cwd / "zero" / "summary.json").read_text())["metrics"]
    done = run_command(*SMOKE, *QUICK, "warm_start=run/checkpoints/last/policy", "hydra.run.dir=from_path", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lora_and_off_policy_passes_run(smoke):
    cwd, _ = smoke
    done = run_command(
        *SMOKE,
        *QUICK,
        "algo.mu=2",
        "algo.minibatches=2",
        "model.lora.enabled=true",
        "reward=exp",
        "hydra.run.dir=lora",
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    policy = cwd / "lora" / "checkpoints" / "last" / "policy"
    assert not (policy / "adapter_config.json").exists(), "what is exported has the adapters merged in"
