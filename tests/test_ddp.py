"""Two processes: the same losses and weights as one with the same lists, and an end in bounded time when one of them dies."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from ddp_worker import HELD, SHARDED
from safetensors.torch import load_file
from support import SMOKE, assert_done, run_command, run_job, start_command, start_group
from test_modules import ALGORITHMS, distance

from convrec_r1.base.files import read_json, read_jsonl

shared = pytest.mark.processes("ddp")
"""Marks the tests that share what one process learns."""


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one process learns, a folder an algorithm."""
    folder = tmp_path_factory.mktemp("one")
    assert_done(run_job("ddp_worker:main", str(folder), "auto", ALGORITHMS, cwd=folder))
    return folder


def assert_alike(ours: Path, theirs: Path, algo: str) -> None:
    policies = [load_file(f / algo / "checkpoints" / "last" / "policy" / "model.safetensors") for f in (ours, theirs)]
    # Float rounding after steps of Adam at a rate of 1e-2: up to 2.3e-5, depending on the processor.
    assert distance(*policies) < 5e-5, algo
    rows = [{row["step"]: row["values"] for row in read_jsonl(f / algo / "metrics.jsonl")} for f in (ours, theirs)]
    steps = [1, 2, 3] if algo == SHARDED else [1, 2]
    assert [list(row) for row in rows] == [steps, steps]
    for step, values in rows[0].items():
        for name, value in values.items():
            if not name.startswith(("time/", "tokens_per_second")):
                assert rows[1][step][name] == pytest.approx(value, rel=1e-3, abs=1e-4), (algo, name)


@shared
def test_two_processes_learn_what_one_does(one, tmp_path):
    """For every algorithm, with several passes, minibatches and a KL term: groups are dealt out whole, and sums are of all."""
    assert_done(run_job("ddp_worker:main", str(tmp_path), "ddp", ALGORITHMS, cwd=tmp_path, world=2))
    for algo in ALGORITHMS:
        assert_alike(one, tmp_path, algo)


@shared
def test_shards_learn_what_one_process_does_and_go_on_from_a_checkpoint(one, tmp_path):
    """Under FSDP: sampling, scoring and learning from gathered shards, checkpoints written from them and read into them."""
    cut = run_job("ddp_worker:main", str(tmp_path), "fsdp", [SHARDED], 3, cwd=tmp_path, world=2)
    assert [command.poll() for command in cut] == [9, 9]
    assert (tmp_path / SHARDED / "checkpoints" / "last").resolve().name == "000002"
    assert_done(run_job("ddp_worker:main", str(tmp_path), "fsdp", [SHARDED, HELD], cwd=tmp_path, world=2))
    for algo in (SHARDED, HELD):
        assert_alike(one, tmp_path, algo)


@pytest.mark.processes
def test_a_whole_job_on_shards(tmp_path):
    """SFT, RL and evaluation with LoRA under FSDP: the policies that are written, and the one that is evaluated, are whole."""
    job = (*SMOKE, "hydra.run.dir=run", "algo.beta=0.01", "eval.baselines=[sft]", "sft.lr=1e-3", "eval.every=2",
           "model.lora.enabled=true")  # fmt: skip
    sharded = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    done = run_command(*job, cwd=one)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_done(run_job("ddp_worker:command_line", *job, *sharded, cwd=two, world=2))
    for policy in ("outputs/warm_starts/*/policy", "run/checkpoints/last/policy"):
        (ours,), (theirs,) = one.glob(f"{policy}/model.safetensors"), two.glob(f"{policy}/model.safetensors")
        assert distance(load_file(ours), load_file(theirs)) < 2e-5, policy
    assert read_json(one / "run" / "summary.json")["metrics"] == read_json(two / "run" / "summary.json")["metrics"]


LONG = ("trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run", "rl.steps=500", "eval.every=0")


def trains(folder: Path) -> bool:
    return any(row["split"] == "train" for row in read_jsonl(folder / "run" / "metrics.jsonl"))


@pytest.mark.processes
def test_a_second_process_that_dies_ends_the_run(tmp_path):
    """Lightning starts it here, as it does for people."""
    command = start_command(*SMOKE, *LONG, cwd=tmp_path)
    try:
        command.until(lambda: trains(tmp_path))
        (child,) = members(command.pid) - {command.pid}
        os.kill(child, signal.SIGKILL)
        assert command.wait(90) != 0
        assert not members(command.pid), "a process hangs"
    finally:
        for pid in members(command.pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.processes
def test_a_first_process_that_dies_ends_the_others(tmp_path):
    """Nobody looks after the others: they notice it themselves."""
    first, second = start_group(*SMOKE, *LONG, cwd=tmp_path, world=2)
    first.until(lambda: trains(tmp_path))
    first.end()
    assert second.wait(90) != 0


def members(leader: int) -> set[int]:
    """Python processes of the run that live, by what /proc says of their session."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
            if int(fields[3]) == leader and fields[0] != "Z" and b"convrec_r1" in command:
                found.add(int(folder.name))
    return found
