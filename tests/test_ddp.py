"""Two processes: the same losses and weights as one with the same lists, and an end in bounded time when one of them dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import ROOT, SMOKE
from test_modules import ALGORITHMS, distance

from convrec_r1.run.files import read_jsonl

pytestmark = pytest.mark.slow


def worker(folder, world: int) -> dict:
    folder.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"] if world > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "tests" / "ddp_worker.py"), str(folder)],
        capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {algo: torch.load(folder / f"{algo}.pt", weights_only=True) for algo in ALGORITHMS}


def test_two_processes_learn_what_one_does(tmp_path):
    """For every algorithm, with several passes, minibatches and a KL term: groups are dealt out whole, and sums are of all."""
    one, two = worker(tmp_path / "one", 1), worker(tmp_path / "two", 2)
    for algo in ALGORITHMS:
        assert distance(one[algo], two[algo]) < 2e-5, algo
        ours, theirs = (read_jsonl(tmp_path / name / algo / "metrics.jsonl") for name in ("one", "two"))
        assert len(ours) == len(theirs) == 2
        for mine, other in zip(ours, theirs, strict=True):
            for name, value in mine["values"].items():
                if not name.startswith(("time/", "tokens_per_second")):
                    assert other["values"][name] == pytest.approx(value, rel=1e-3, abs=1e-4), (algo, name)


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
