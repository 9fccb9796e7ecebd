"""Where time and memory go, as ratios within one run: `make bench`. Prints a table and writes experiments/bench.json.

python experiments/bench.py [--out FILE]
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from convrec_r1.base.files import read_jsonl, write_json
from convrec_r1.policy.logprobs import token_logprobs
from convrec_r1.rl import LengthShaping, group_advantages, per_token, policy_loss, segment_ranks, shape_lengths


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def head(tokens: int, hidden: int, vocabulary: int, chunked: bool) -> dict[str, float]:
    """Log-probs and their gradient at the size of Qwen2.5-0.5B's head; run in a process of its own for its peak memory."""
    x = torch.randn(tokens, hidden, requires_grad=True)
    w = (torch.randn(vocabulary, hidden) * 0.02).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    w.grad, x.grad = torch.zeros_like(w), torch.zeros_like(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def work() -> None:
        if chunked:
            logps, _ = token_logprobs(x, w, targets, 1.0)
        else:
            log_p = torch.log_softmax((x @ w.T).float(), -1)
            logps = log_p.gather(1, targets[:, None])[:, 0]
            with torch.no_grad():
                -(log_p.exp() * log_p).sum(-1)
        logps.sum().backward()

    took = seconds(work, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": took, "peak_mib": peak / 1024}


def objective(rows: int = 128, width: int = 120, vocabulary: int = 2048, n: int = 20) -> float:
    """Seconds for all of rl/ on a step's worth of lists: segments, advantages, shaping, loss and its gradient."""
    ids = torch.randint(vocabulary, (rows, width))
    newline, blank = torch.zeros(2, vocabulary, dtype=torch.bool)
    newline[: vocabulary // 6] = True
    mask = torch.ones(rows, width)
    returns = torch.rand(rows, n)
    logps = torch.randn(rows, width, requires_grad=True)

    def work() -> None:
        ranks = segment_ranks(ids, mask, newline, blank)
        advantages = per_token(group_advantages(returns, 8), ranks, n)
        shaped = shape_lengths(advantages, ranks, ids == 0, ranks.amax(-1) + 1, n, LengthShaping())
        loss, _ = policy_loss(
            logps,
            logps.detach(),
            shaped,
            mask,
            ranks,
            n=n,
            ratio="rank",
            aggregation="rank",
            clip_low=0.06,
            clip_high=0.08,
        )
        loss.backward()

    return seconds(work)


def shares_of_a_step(steps: int) -> dict[str, float]:
    """What share of an RL step of the default run goes where, from the metrics of a short one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "convrec_r1", f"rl.steps={steps}", "sft.steps=60", "data.train_size=500", "eval.every=0",
            "logger=none", "eval.baselines=[]", "data.test_size=8", f"hydra.run.dir={folder}/run", f"outputs={folder}",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [r["values"] for r in read_jsonl(Path(folder) / "run" / "metrics.jsonl") if r["split"] == "train"][1:]
    parts = {part: statistics.mean(r[f"time/{part}"] for r in rows) for part in ("rollout", "reward", "train", "sync")}
    whole = sum(parts.values())
    return {part: value / whole for part, value in parts.items()} | {"seconds_per_step": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=Path(__file__).parent / "bench.json", type=Path)
    parser.add_argument("--head", choices=("plain", "chunked"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.head:
        print(json.dumps(head(1024, 896, 151_936, arguments.head == "chunked")))
        return
    heads = {}
    for kind in ("plain", "chunked"):
        done = subprocess.run([sys.executable, __file__, "--head", kind], check=True, capture_output=True, text=True)
        heads[kind] = json.loads(done.stdout)
    step = shares_of_a_step(12)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "head, chunked / plain, time": heads["chunked"]["seconds"] / heads["plain"]["seconds"],
        "head, chunked / plain, peak memory": heads["chunked"]["peak_mib"] / heads["plain"]["peak_mib"],
        "head, plain, peak MiB": heads["plain"]["peak_mib"],
        "step, rollout share": step["rollout"],
        "step, forward and backward share": step["train"],
        "step, reward share": step["reward"],
        "step, seconds": step["seconds_per_step"],
        "objective (rl/) / step": objective() / step["seconds_per_step"],
    }
    write_json(arguments.out, result)
    for name, value in result.items():
        print(f"{name:<40} {value if isinstance(value, str) else format(value, '.3f')}")


if __name__ == "__main__":
    main()
