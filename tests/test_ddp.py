"""Two processes: the same losses and weights as one with the same lists, and an end in bounded time when one of them dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import ROOT, SMOKE
from test_modules import ALGORITHMS, distance

from convrec_r1.run.files import read_json, read_jsonl

pytestmark = pytest.mark.slow


def worker(folder: Path, world: int, strategy: str, algorithms: Sequence[str], cut: int = -1) -> None:
    """cut: the step after which every process dies."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"] if world > 1 else []
    script = [str(ROOT / "tests" / "ddp_worker.py"), str(folder), strategy, ",".join(algorithms), str(cut)]
    done = subprocess.run(
        [sys.executable, *launch, *script],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )  # fmt: skip
    assert (done.returncode == 0) == (cut == -1), done.stdout + done.stderr


def assert_alike(ours: Path, theirs: Path, algo: str) -> None:
    policies = [load_file(f / algo / "checkpoints" / "last" / "policy" / "model.safetensors") for f in (ours, theirs)]
    assert distance(*policies) < 2e-5, algo
    rows = [{row["step"]: row["values"] for row in read_jsonl(f / algo / "metrics.jsonl")} for f in (ours, theirs)]
    assert [list(row) for row in rows] == [[1, 2, 3], [1, 2, 3]]
    for step, values in rows[0].items():
        for name, value in values.items():
            if not name.startswith(("time/", "tokens_per_second")):
                assert rows[1][step][name] == pytest.approx(value, rel=1e-3, abs=1e-4), (algo, name)


def test_two_processes_learn_what_one_does(tmp_path):
    """For every algorithm, with several passes, minibatches and a KL term: groups are dealt out whole, and sums are of all."""
    worker(tmp_path / "one", 1, "auto", ALGORITHMS)
    worker(tmp_path / "two", 2, "ddp", ALGORITHMS)
    for algo in ALGORITHMS:
        assert_alike(tmp_path / "one", tmp_path / "two", algo)


def test_shards_learn_what_one_process_does_and_go_on_from_a_checkpoint(tmp_path):
    """Under FSDP: sampling, scoring and learning from gathered shards, checkpoints written from them and read into them."""
    worker(tmp_path / "one", 1, "auto", ["rank_grpo"])
    worker(tmp_path / "two", 2, "fsdp", ["rank_grpo"], cut=3)
    assert (tmp_path / "two" / "rank_grpo" / "checkpoints" / "last").resolve().name == "000002"
    worker(tmp_path / "two", 2, "fsdp", ["rank_grpo"])
    assert_alike(tmp_path / "one", tmp_path / "two", "rank_grpo")


def test_a_whole_job_on_shards(tmp_path):
    """SFT, RL and evaluation with LoRA under FSDP: the policies that are written, and the one that is evaluated, are whole."""
    job = (*SMOKE, "hydra.run.dir=run", "algo.beta=0.01", "eval.baselines=[sft]", "sft.lr=1e-3", "eval.every=2",
           "model.lora.enabled=true")  # fmt: skip
    sharded = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2")
    launch = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "tests" / "shards_job.py"),
    )
    for name, command in (("one", ("-m", "convrec_r1", *job)), ("two", (*launch, *job, *sharded))):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path / name, capture_output=True, text=True, timeout=600,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    for policy in ("outputs/warm_starts/*/policy", "run/checkpoints/last/policy"):
        (ours,), (theirs,) = one.glob(f"{policy}/model.safetensors"), two.glob(f"{policy}/model.safetensors")
        assert distance(load_file(ours), load_file(theirs)) < 2e-5, policy
    assert read_json(one / "run" / "summary.json")["metrics"] == read_json(two / "run" / "summary.json")["metrics"]


LONG = ("trainer=ddp", "trainer.accelerator=cpu", "hydra.run.dir=run", "rl.steps=500", "eval.every=0")


@pytest.mark.parametrize("victim", ["child", "first"])
def test_a_process_that_dies_ends_the_run(tmp_path, victim):
    process = subprocess.Popen(
        [sys.executable, "-m", "convrec_r1", *SMOKE, *LONG],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while not any(row["split"] == "train" for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        (child,) = members(process.pid) - {process.pid}
        told = time.monotonic()
        os.kill(child if victim == "child" else process.pid, signal.SIGKILL)
        while members(process.pid) and time.monotonic() < told + 90:
            process.poll()  # so that it does not stay as a zombie
            time.sleep(0.2)
        assert not members(process.pid), "a process hangs"
        assert process.returncode != 0
    finally:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)


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
