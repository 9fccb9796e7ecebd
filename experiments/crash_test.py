"""Kill real runs with -9 at random instants, start them again, and compare what they come to with a run that nobody disturbed.

    python experiments/crash_test.py                      # 20 trials; writes experiments/crash_test.json
    python experiments/crash_test.py --trials 5 rollout=vllm

Each trial is the whole job (SFT, then RL, then evaluation) in a folder of its own, killed once at an instant drawn between
SFT's first step and the end of the job, and started again with the same command. Compared: weights by SHA-256, every list,
every metric but times.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_resume import outcome

from convrec_r1.base.files import read_jsonl, write_json

RUN = (
    "debug=smoke",
    "logger=none",
    "hydra.run.dir=run",
    "sft.steps=40",
    "rl.steps=24",
    "eval.every=8",
    "guard.action=none",
)


def launch(folder: Path, overrides: list[str]) -> subprocess.Popen:
    with (folder / "said.log").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "convrec_r1", *RUN, *overrides],
            cwd=folder, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip


def until_it_trains(process: subprocess.Popen, folder: Path) -> float:
    """Wait for the first step of SFT; that time."""
    while not any(file.stat().st_size for file in folder.glob("outputs/warm_starts/*/metrics.jsonl")):
        if process.poll() is not None:
            raise SystemExit(f"A run failed:\n{(folder / 'said.log').read_text()[-3000:]}")
        time.sleep(0.002)
    return time.monotonic()


def complete(folder: Path, overrides: list[str]) -> float:
    """Run to the end; seconds since the first step of SFT."""
    process = launch(folder, overrides)
    began = until_it_trains(process, folder)
    if process.wait():
        raise SystemExit(f"A run failed:\n{(folder / 'said.log').read_text()[-3000:]}")
    return time.monotonic() - began


def where(folder: Path) -> str:
    """What a run was at when it was killed."""
    steps = [row["step"] for row in read_jsonl(folder / "run" / "metrics.jsonl") if row["split"] == "train"]
    if (folder / "run" / "summary.json").exists():
        return "complete"
    if steps:
        return f"RL, after step {steps[-1]}"
    sft = [row for file in folder.glob("outputs/warm_starts/*/metrics.jsonl") for row in read_jsonl(file)]
    if list(folder.glob("outputs/warm_starts/*/warm_start.json")):
        return "between SFT and RL"
    return f"SFT, after step {sft[-1]['step']}" if sft else "starting"


def trial(folder: Path, instant: float, overrides: list[str], wanted: dict) -> dict:
    """One run that is killed `instant` seconds after it began to train, and gone on with."""
    folder.mkdir()
    process = launch(folder, overrides)
    until_it_trains(process, folder)
    time.sleep(instant)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = where(folder)
    complete(folder, overrides)
    found = outcome(folder / "run")
    shutil.rmtree(folder)
    return {"second": round(instant, 2), "killed": killed} | {name: found[name] == wanted[name] for name in wanted}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=20)
    arguments.add_argument("--jobs", type=int, default=2, help="trials at once, each on one core")
    arguments.add_argument("--seed", type=int, default=0)
    given, overrides = arguments.parse_known_args()
    rng = random.Random(given.seed)
    name = "_".join(["crash_test", *(override.replace("=", "_") for override in overrides)])
    trials: list[dict] = []
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(given.jobs) as pool:
        whole = Path(place) / "whole"
        whole.mkdir()
        seconds = complete(whole, overrides)
        wanted = outcome(whole / "run")
        started = [
            pool.submit(trial, Path(place) / str(number), rng.uniform(0, seconds), overrides, wanted)
            for number in range(given.trials)
        ]
        for done in as_completed(started):
            trials.append(found := done.result())
            same = found["files"] and found["metrics"]
            print(
                f"{len(trials):>3}  {found['second']:6.2f} s  {found['killed']:<24}{'equal' if same else found}",
                flush=True,
            )
            write_json(
                Path(__file__).parent / f"{name}.json",
                {
                    "command": [*RUN, *overrides],
                    "seconds": round(seconds, 1),
                    "equal": sum(t["files"] and t["metrics"] for t in trials),
                    "trials": trials,
                },
            )
    equal = sum(t["files"] and t["metrics"] for t in trials)
    print(f"{equal} of {len(trials)} equal; SFT, RL and evaluation take {seconds:.0f} s")
    sys.exit(equal != len(trials))


if __name__ == "__main__":
    main()
