"""Do lists that are held to the catalog help? Trainings, evaluations and the comparison of experiments/constraint/README.md.

    python experiments/constraint/run.py --seeds 1,2,3

GRPO and Rank-GRPO (exp_inf) are trained without a constraint, with rollouts held to the catalog, and with a penalty for repeats
and for lines outside the catalog. Policies that were trained without the constraint are evaluated with it, too.
The same command resumes: runs that are complete are not repeated.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STUDY = "constraint"
TRAINED = {
    "none": [],
    "catalog": ["rollout.constraint=catalog", "eval.constraint=catalog"],
    "penalised": ["reward=penalised"],
}
"""Overrides of each way to train."""


def command(*overrides: str) -> None:
    """Run one command of the package. Its failure ends the study."""
    line = [sys.executable, "-m", "convrec_r1", "--config-dir", str(HERE / "conf"), *overrides]
    print("$", "python -m convrec_r1", *overrides, flush=True)
    subprocess.run(line, cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--algos", default="grpo,rank_grpo")
    parser.add_argument("overrides", nargs="*", help="more overrides for the trainings, such as rl.steps=10")
    options = parser.parse_args()
    outputs = ROOT / "outputs"
    for seed in options.seeds.split(","):
        for way, overrides in TRAINED.items():
            for algo in options.algos.split(","):
                run = outputs / STUDY / f"{way}-{algo}-{seed}"
                own = [*overrides, f"algo={algo}", f"seed={seed}", "logger=none", *options.overrides]
                command("experiment=constraint", f"hydra.run.dir={run}", *own)
                if way != "catalog":
                    held = outputs / STUDY / f"{way}-held-{algo}-{seed}"
                    command(
                        "task=eval", f"checkpoint={run}", "eval.constraint=catalog", f"hydra.run.dir={held}",
                        f"study={STUDY}", "logger=none",
                    )  # fmt: skip
    command("task=compare", f"runs={outputs / STUDY}/*", f"study={STUDY}")


if __name__ == "__main__":
    main()
