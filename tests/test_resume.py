"""Checkpoints: sealed, checked, gone back from; a full disk; signals; and a run that is killed ends as one that was not."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import SMOKE, assert_user_error, run_command

from convrec_r1.errors import UserError
from convrec_r1.run.checkpoints import damage, newest, require_whole, seal
from convrec_r1.run.files import read_json, read_jsonl

RUN = (*SMOKE, "hydra.run.dir=run", "rl.steps=6", "sft.steps=6", "eval.baselines=[]", "rl.table_every=2")
"""Checkpoints are written after every second step."""


def sealed(folder: Path, step: int = 2) -> Path:
    step_folder = folder / f"{step:06d}"
    (step_folder / "policy").mkdir(parents=True)
    (step_folder / "trainer.ckpt").write_bytes(os.urandom(1000))
    (step_folder / "policy" / "config.json").write_text("{}")
    seal(step_folder)
    return step_folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: cut(f / "trainer.ckpt"), "trainer.ckpt has 999 bytes instead of 1,000"),
        (lambda f: flip(f / "trainer.ckpt"), r"trainer.ckpt is not what was written"),
        (lambda f: flip(f / "policy" / "config.json"), "policy/config.json"),
        (lambda f: (f / "policy" / "config.json").unlink(), "policy/config.json is missing"),
        (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text('{"trainer.ckpt": 3}'), "cannot be read"),
    ],
)
def test_damage_is_found_and_named(tmp_path, harm, says):
    folder = sealed(tmp_path)
    assert damage(folder) is None
    require_whole(folder)
    harm(folder)
    assert says in damage(folder)
    if (folder / "manifest.json").exists():
        with pytest.raises(UserError, match="is damaged"):
            require_whole(folder)


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path, caplog):
    assert newest(tmp_path) is None
    first, second = sealed(tmp_path, 2), sealed(tmp_path, 4)
    (tmp_path / "000005" / "policy").mkdir(parents=True)  # of a mark: nothing to go on from
    sealed(tmp_path, 6).rename(tmp_path / ".000006.partial")  # what a killed run leaves
    assert newest(tmp_path) == second
    flip(second / "trainer.ckpt")
    assert newest(tmp_path) == first
    assert "000004 is damaged: trainer.ckpt" in caplog.text
    cut(first / "trainer.ckpt")
    assert newest(tmp_path) is None


# -- whole runs ------------------------------------------------------------------------------------------------------------


def outcome(folder: Path) -> dict:
    """All that a run computed: weights, lists and metrics, without times."""
    files = [*folder.glob("checkpoints/last/policy/*"), *folder.glob("eval/*.jsonl"), *folder.glob("rollouts/*.jsonl")]
    digests = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    rows = read_jsonl(folder / "metrics.jsonl")
    for row in rows:
        row["values"] = {
            name: value
            for name, value in row["values"].items()
            if not name.startswith("time/") and "per_second" not in name
        }
    return {"files": digests, "metrics": rows}


def start(cwd: Path, *overrides: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "convrec_r1", *RUN, *overrides],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env},
    )  # fmt: skip


def until(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def steps(cwd: Path, split: str = "train") -> int:
    return sum(row["split"] == split for row in read_jsonl(cwd / "run" / "metrics.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """What a run comes to that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_command(*RUN, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return outcome(folder / "run")


def finish(cwd: Path, whole: dict) -> str:
    """The same command again: it ends as the run that nobody disturbed."""
    done = run_command(*RUN, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(cwd / "run") == whole
    return done.stdout


@pytest.mark.slow
def test_killed_in_sft_and_in_rl_and_with_a_damaged_checkpoint_it_ends_the_same(tmp_path, whole):
    process = start(tmp_path)
    until(lambda: list(tmp_path.glob("outputs/warm_starts/*/checkpoints/000002/trainer.ckpt")), process)
    process.kill()
    process.wait()
    process = start(tmp_path)
    until(lambda: (tmp_path / "run" / "checkpoints" / "000004" / "trainer.ckpt").exists(), process)
    process.kill()
    process.wait()
    flip(tmp_path / "run" / "checkpoints" / "000004" / "trainer.ckpt")
    finish(tmp_path, whole)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "000004 is damaged: trainer.ckpt is not what was written" in log
    assert re.search("Going on from .*000002", log)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_leaves(tmp_path, whole, number, status):
    process = start(tmp_path)
    until(lambda: steps(tmp_path) >= 1, process)
    told = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == status, said
    assert time.monotonic() - told < 30
    assert "Traceback" not in said
    assert "saved at step" in said
    last = (tmp_path / "run" / "checkpoints" / "last").resolve()
    assert damage(last) is None
    assert int(last.name) == steps(tmp_path)
    assert not (tmp_path / "run" / "summary.json").exists()
    finish(tmp_path, whole)


@pytest.mark.slow
def test_cut_off_behind_the_last_evaluation(tmp_path, whole):
    assert run_command(*RUN, cwd=tmp_path).returncode == 0
    (tmp_path / "run" / "summary.json").unlink()
    finish(tmp_path, whole)


@pytest.mark.slow
def test_the_same_command_twice_at_once(tmp_path, whole):
    """The second is refused while the first one lives, and no longer."""
    process = start(tmp_path)
    until(lambda: steps(tmp_path) >= 1, process)
    process.send_signal(signal.SIGSTOP)  # it lives, and does not end before the second has been refused
    assert_user_error(run_command(*RUN, cwd=tmp_path), "Another process is at this run")
    process.kill()
    process.wait()
    finish(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["starting", "training"])
def test_before_a_time_limit_slurm_gets_the_job_back(tmp_path, whole, when):
    """`scontrol` is a script here that writes down what it is asked."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(0o755)
    process = start(tmp_path, PATH=f"{tool.parent}:{os.environ['PATH']}", SLURM_JOB_ID="4711")
    until(lambda: (tmp_path / "run" / "config.yaml").exists() if when == "starting" else steps(tmp_path) >= 1, process)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGUSR1, said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    finish(tmp_path, whole)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_a_step_that_does_not_end_is_left(tmp_path):
    """The first step takes minutes. When step 0 has been evaluated, it begins."""
    slow = ("rl.prompts_per_step=96", "algo.group_size=64", "model.max_completion_length=400", "eval.every=2",
            "eval.validation_size=2", "rollout.stop_at_n=false", "trainer.exit_within=4")  # fmt: skip
    for second in (True, False):
        process = start(tmp_path, *slow, f"hydra.run.dir={second}")
        until(lambda second=second: "validation" in _text(tmp_path / str(second) / "metrics.jsonl"), process)
        time.sleep(1.5)
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if second:
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=90)[0]
        assert process.returncode == 143, said
        assert ("again: leaving at once" in said) == second
        assert ("did not end within 4 s" in said.replace("\n", " ")) == (not second), said
        assert time.monotonic() - told < (4 if second else 30)
        assert steps(tmp_path) == 0


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, whole):
    """The disk is full for files above a size that the first checkpoint's still have: a limit of the kernel's own."""
    process = start(tmp_path)
    until(lambda: (tmp_path / "run" / "checkpoints" / "000002" / "trainer.ckpt").exists(), process)
    process.kill()
    process.wait()
    limit = 200_000
    done = subprocess.run(
        [sys.executable, "-m", "convrec_r1", *RUN],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert_user_error(done, "could not be written", "no room", "the one of step 2 is whole and stays")
    assert damage(tmp_path / "run" / "checkpoints" / "000002") is None
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.partial"))
    finish(tmp_path, whole)


@pytest.mark.slow
def test_a_policy_that_was_damaged_is_not_evaluated(tmp_path):
    folder = tmp_path / "run"
    done = run_command(*SMOKE, "hydra.run.dir=run", "rl.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    flip((folder / "checkpoints" / "last").resolve() / "policy" / "model.safetensors")
    done = run_command(*SMOKE, "task=eval", f"checkpoint={folder}", cwd=tmp_path)
    assert_user_error(done, "is damaged: policy/model.safetensors")
    assert read_json(folder / "summary.json")["status"] == "complete"
    assert json.loads((folder / "summary.json").read_text())
    shutil.rmtree(folder)
