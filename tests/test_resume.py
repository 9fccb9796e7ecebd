"""Checkpoints: sealed, checked, gone back from; a full disk; signals; and a run that is killed ends as one that was not."""

import hashlib
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
from support import SMALL_MODEL, SMOKE, Command, assert_user_error, run_command, start_command

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import read_json, read_jsonl
from convrec_r1.run.checkpoints import damage, newest, require_whole, seal

RUN = (*SMOKE, "hydra.run.dir=run", "rl.steps=6", "sft.steps=6", "eval.baselines=[]", "rl.table_every=2",
       *SMALL_MODEL)  # fmt: skip
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
        (lambda f: flip(f / "trainer.ckpt"), "the checksum of trainer.ckpt differs"),
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
    assert "000004 is damaged: the checksum of trainer.ckpt differs" in caplog.text
    cut(first / "trainer.ckpt")
    assert newest(tmp_path) is None


# -- whole runs ------------------------------------------------------------------------------------------------------------

whole_run = pytest.mark.processes("resume")
"""Marks the tests that share one undisturbed run."""


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


def start(cwd: Path, *overrides: str, **env: str) -> Command:
    return start_command(*RUN, *overrides, cwd=cwd, **env)


def steps(cwd: Path, split: str = "train") -> int:
    return sum(row["split"] == split for row in read_jsonl(cwd / "run" / "metrics.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Where a run has ended that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_command(*RUN, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(undisturbed) -> dict:
    return outcome(undisturbed / "run")


@pytest.fixture
def warm(undisturbed, tmp_path) -> Path:
    """A folder in which the SFT of that run is done."""
    shutil.copytree(undisturbed / "outputs" / "warm_starts", tmp_path / "outputs" / "warm_starts", symlinks=True)
    return tmp_path


def finish(cwd: Path, whole: dict) -> str:
    """The same command again: it ends as the run that nobody disturbed."""
    done = run_command(*RUN, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(cwd / "run") == whole
    return done.stdout


@whole_run
def test_killed_in_sft_and_in_rl_and_with_a_damaged_checkpoint_it_ends_the_same(tmp_path, whole):
    command = start(tmp_path)
    command.until(lambda: list(tmp_path.glob("outputs/warm_starts/*/checkpoints/000002/trainer.ckpt")))
    command.end()
    command = start(tmp_path)
    command.until(lambda: (tmp_path / "run" / "checkpoints" / "000004" / "trainer.ckpt").exists())
    command.end()
    flip(tmp_path / "run" / "checkpoints" / "000004" / "trainer.ckpt")
    finish(tmp_path, whole)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "000004 is damaged: the checksum of trainer.ckpt differs" in log
    assert re.search("Resuming from .*000002", log)


@whole_run
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_leaves(warm, whole, number, status):
    command = start(warm)
    command.until(lambda: steps(warm) >= 1)
    told = time.monotonic()
    command.send_signal(number)
    assert command.wait(60) == status, command.said
    assert time.monotonic() - told < 30
    assert "Traceback" not in command.said
    assert "saved at step" in command.said
    last = (warm / "run" / "checkpoints" / "last").resolve()
    assert damage(last) is None
    assert int(last.name) == steps(warm)
    assert not (warm / "run" / "summary.json").exists()
    finish(warm, whole)


@whole_run
def test_cut_off_behind_the_last_evaluation(undisturbed, tmp_path, whole):
    shutil.copytree(undisturbed, tmp_path, symlinks=True, dirs_exist_ok=True)
    (tmp_path / "run" / "summary.json").unlink()
    finish(tmp_path, whole)


@whole_run
def test_the_same_command_twice_at_once(warm, whole):
    """The second is refused while the first one lives, and no longer."""
    command = start(warm)
    command.until(lambda: steps(warm) >= 1)
    command.send_signal(signal.SIGSTOP)  # it lives, and does not end before the second has been refused
    assert_user_error(run_command(*RUN, cwd=warm), "Another process works on this run")
    command.end()
    finish(warm, whole)


@whole_run
@pytest.mark.parametrize("when", ["starting", "training"])
def test_before_a_time_limit_slurm_gets_the_job_back(warm, whole, when):
    """`scontrol` is a script here that writes down what it is asked."""
    tool = warm / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {warm}/asked\n')
    tool.chmod(0o755)
    command = start(warm, PATH=f"{tool.parent}:{os.environ['PATH']}", SLURM_JOB_ID="4711")
    command.until(lambda: (warm / "run" / "config.yaml").exists() if when == "starting" else steps(warm) >= 1)
    command.send_signal(signal.SIGUSR1)
    assert command.wait(60) == 128 + signal.SIGUSR1, command.said
    assert (warm / "asked").read_text() == "requeue 4711\n"
    finish(warm, whole)


@whole_run
@pytest.mark.parametrize("again", [True, False])
def test_a_second_signal_leaves_at_once_and_a_step_that_does_not_end_is_left(warm, again):
    """The first step takes minutes."""
    slow = (
        "rl.prompts_per_step=96",
        "algo.group_size=64",
        "rollout=hf",
        "rollout.batch_size=4",
        "trainer.exit_within=4",
    )
    command = start(warm, *slow)
    command.until(lambda: in_a_step(command.pid))
    told = time.monotonic()
    command.send_signal(signal.SIGTERM)
    if again:
        time.sleep(0.5)
        command.send_signal(signal.SIGTERM)
    assert command.wait(90) == 143, command.said
    assert ("again: exiting at once" in command.said) == again
    assert ("did not end within 4 s" in command.said.replace("\n", " ")) == (not again), command.said
    assert time.monotonic() - told < (4 if again else 30)
    assert steps(warm) == 0


def in_a_step(pid: int) -> bool:
    """Whether a process trains: from its first step on it listens to SIGALRM, as Linux tells."""
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught, 16) >> (signal.SIGALRM - 1) & 1)


@whole_run
def test_a_full_disk_leaves_the_last_good_checkpoint(warm, whole):
    """The disk is full for files above a size that the first checkpoint's still have: a limit of the kernel's own."""
    command = start(warm)
    command.until(lambda: (warm / "run" / "checkpoints" / "000002" / "trainer.ckpt").exists())
    command.end()
    command = start(warm)
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    assert command.wait() == 2, command.said
    assert "Traceback" not in command.said
    for said in ("could not be written", "no space left", "The checkpoint of step 2 is intact"):
        assert said in command.stderr
    assert damage(warm / "run" / "checkpoints" / "000002") is None
    assert not list((warm / "run" / "checkpoints").glob(".*.partial"))
    finish(warm, whole)


@whole_run
def test_a_policy_that_was_damaged_is_not_evaluated(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "run", tmp_path / "run", symlinks=True)
    flip((tmp_path / "run" / "checkpoints" / "last").resolve() / "policy" / "model.safetensors")
    done = run_command(*SMOKE, "task=eval", "checkpoint=run", cwd=tmp_path)
    assert_user_error(done, "is damaged: the checksum of policy/model.safetensors")
    assert read_json(tmp_path / "run" / "summary.json")["status"] == "complete"
