"""A run's folder, its metrics files, its W&B record: written whole, found again, never mixed up."""

import json

import pytest
import wandb_offline
from omegaconf import OmegaConf
from support import ROOT, compose_config, make_config

from convrec_r1 import __version__
from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_jsonl, replacing, write_json, write_text
from convrec_r1.config.parts import tracker as make_tracker
from convrec_r1.run.folder import RunFolder, State
from convrec_r1.run.tracker import CsvSink, JsonlSink, Tracker, rewind


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "old")

    def interrupted():
        with replacing(path) as scratch:
            scratch.write_text("half of the n")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_half_written_last_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_a_folder_knows_new_interrupted_and_complete(tmp_path):
    folder = RunFolder(tmp_path / "run")
    cfg = compose_config()
    assert folder.begin(cfg, "abc123") is State.new
    written = OmegaConf.load(folder.config)
    assert (written.version, written.git_sha, written.algo.name) == (__version__, "abc123", "rank_grpo")
    assert folder.begin(cfg) is State.interrupted
    folder.finish({"seconds": 1})
    assert folder.begin(cfg) is State.complete
    assert json.loads(folder.summary.read_text()) == {"status": "complete", "version": __version__, "seconds": 1}
    # What is recorded about a run is not part of it.
    assert folder.begin(compose_config("logger=none", "study=other")) is State.complete


def test_a_folder_of_another_run_is_refused_until_told_to_start_over(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(compose_config())
    write_json(folder.summary, {})
    (tmp_path / "run" / "mine.txt").write_text("not the run's")
    with pytest.raises(UserError, match=r"rl\.lr: 0\.\d+ there, 1e-05 now"):
        folder.begin(compose_config("rl.lr=1e-5"))
    assert folder.begin(compose_config("rl.lr=1e-5", "fresh=true")) is State.new
    assert not folder.summary.exists()
    assert (tmp_path / "run" / "mine.txt").exists()


def test_the_citation_and_the_changelog_name_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


def test_an_empty_folder_goes_away_and_a_used_one_stays(tmp_path):
    outputs = tmp_path / "outputs"
    empty = outputs / "study" / "run"
    empty.mkdir(parents=True)
    RunFolder(empty).discard_if_empty(outputs)
    assert not outputs.exists()
    assert tmp_path.exists(), "nothing above the outputs is touched, empty or not"
    elsewhere = tmp_path / "mine" / "run"
    elsewhere.mkdir(parents=True)
    RunFolder(elsewhere).discard_if_empty(outputs)
    assert not elsewhere.exists()
    assert elsewhere.parent.exists()
    empty.mkdir(parents=True)
    (empty / "x").touch()
    RunFolder(empty).discard_if_empty(outputs)
    assert (empty / "x").exists()


def test_metrics_are_lines_of_step_split_values(tmp_path):
    tracker = Tracker(
        [JsonlSink(tmp_path / "metrics.jsonl", tmp_path / "rollouts"), CsvSink(tmp_path / "metrics.jsonl")]
    )
    tracker.log(1, "sft", {"sft/loss": 2.0})
    tracker.log(1, "train", {"reward": 0.5})
    tracker.log(2, "validation", {"val/ndcg@5": 0.25})
    tracker.table("rollouts", 2, [{"list": "Heat (1995)", "relevance": [1, 0]}])
    tracker.close()
    assert read_jsonl(tmp_path / "metrics.jsonl")[1] == {"step": 1, "split": "train", "values": {"reward": 0.5}}
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,split,sft/loss,reward,val/ndcg@5\n1,sft,2.0,,\n1,train,,0.5,\n2,validation,,,0.25\n"
    )
    assert read_jsonl(tmp_path / "rollouts" / "rollouts-000002.jsonl")[0]["relevance"] == [1, 0]


def test_rewind_forgets_what_will_be_computed_again(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log(250, "sft", {"sft/loss": 1.0})
    for step in (1, 2, 3):
        sink.log(step, "train", {"reward": step})
    rewind(sink.path, 2, keep=["sft"])
    assert [(r["split"], r["step"]) for r in read_jsonl(sink.path)] == [("sft", 250), ("train", 1), ("train", 2)]
    # The last evaluation comes after the last checkpoint and bears its step: cut off behind it, a run makes it again.
    sink.log(2, "test", {"test/ndcg@5": 0.5})
    sink.log(2, "validation", {"val/ndcg@5": 0.5})
    rewind(sink.path, 2, keep=["sft"], end="test/")
    assert [r["split"] for r in read_jsonl(sink.path)] == ["sft", "train", "train", "validation"]
    # Before the first checkpoint, and in the warm start's own file, SFT's records are computed again too.
    rewind(sink.path, -1)
    assert read_jsonl(sink.path) == []


@pytest.mark.processes
def test_wandb_keeps_runs_apart_offline(tmp_path):
    """Two runs in one process, as in a sweep: each has its own offline folder, config, group and metrics."""
    seen = {}
    for seed in (1, 2):
        cfg = make_config("logger=wandb", f"seed={seed}", "study=pair")
        folder = RunFolder(tmp_path / f"run{seed}")
        folder.path.mkdir()
        plain = OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True)
        tracker = make_tracker(cfg, plain, folder, "abc123")
        tracker.log(1, "sft", {"sft/loss": 1.5})
        tracker.log(seed, "train", {"reward": seed / 10})
        tracker.table("rollouts", seed, [{"list": "Heat (1995)", "relevance": [1]}])
        tracker.close({"ndcg@10": 0.5})
        seen[seed] = wandb_offline.read(folder.path)
    for seed, run in seen.items():
        assert (run.group, run.job_type, run.name) == ("pair", "train", f"run{seed}")
        assert run.tags == {"rank_grpo", "tiny", "movieland"}
        assert (run.config["seed"], run.config["git_sha"]) == (seed, "abc123")
        assert run.history[:2] == [{"sft/step": 1, "sft/loss": 1.5}, {"step": seed, "reward": seed / 10}]
        assert {"sft/loss": "sft/step", "reward": "step"}.items() <= run.axes.items()
        assert run.table("tables/rollouts") == [[{"list": "Heat (1995)", "relevance": "[1]"}]]
        assert run.summary["ndcg@10"] == 0.5
    assert seen[1].id != seen[2].id
