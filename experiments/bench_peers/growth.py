"""How seconds and memory of a step grow with prompt length, G, n and the catalog: `make bench-growth`.

python experiments/bench_peers/growth.py [--axes prompt group n catalog] [--fresh]

Writes experiments/bench_growth.json after each point, and the curves as bench_growth.png. Points that have a result are kept.
Each point is a process of its own. Model, prompts and lists are those of bench_peers, with our defaults and 10 tokens a line;
what is not varied is: prompts of 500 tokens, 4 of them a step, G 8, n 20. The catalog's axis judges and scores lists of
made-up titles, half of them in the catalog; no model is involved.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import EngFormatter
from results import GROWTH_HERE, insert
from run import Silent, commit, machine, peer_environment, started
from turns import peak_mib, reset_peak, resident_mib
from workload import config, prepare

from convrec_r1.base import draw
from convrec_r1.base.files import read_json, write_json
from convrec_r1.config.parts import evaluator, judge
from convrec_r1.data import Catalog, Conversation, Dataset
from convrec_r1.data.schema import Message
from convrec_r1.lists import Item, format

HERE = Path(__file__).parent
OUT = HERE.parent / "bench_growth.json"
AXES: dict[str, tuple[int, ...]] = {
    "prompt": (250, 500, 1000, 2000, 4000),
    "group": (2, 4, 8, 16, 32),
    "n": (5, 10, 20, 50),
    "catalog": (1_000, 10_000, 30_000, 100_000),
}
TITLES = {
    "prompt": "Tokens of a prompt",
    "group": "Lists of a prompt (G)",
    "n": "Lines of a list (n)",
    "catalog": "Catalog",
}
PROMPT, GROUP, N, PROMPTS, TOKENS_PER_LINE = 500, 8, 20, 4, 10
WARM_UP, REPEATS = 1, 2


def step(axis: str, value: int, workload: Path, given: argparse.Namespace) -> dict[str, float]:
    """Return seconds and memory of a step: medians of rollout and training, MiB that they add to the loaded process."""
    tokens, group, n = ({"prompt": PROMPT, "group": GROUP, "n": N} | {axis: value}).values()
    command = [
        sys.executable, str(HERE / "ours.py"), f"--workload={workload}", f"--tokens={tokens}",
        f"--group={group}", f"--prompts={PROMPTS}", f"--new-tokens={n * TOKENS_PER_LINE}",
        f"--steps={WARM_UP + REPEATS}", f"--seed={given.seed}",
        f"n={n}", *given.ours,
    ]  # fmt: skip
    with started("ours", command, peer_environment(given.threads, ours=True), workload / f"{axis}-{value}.log") as peer:
        loaded = peer.read("ready", given.limit)["resident_mib"]
        steps = [peer.step(given.limit) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    seconds = {name: statistics.median(s[name] for s in steps) for name in ("rollout", "train", "reward")}
    memory = {f"{name}_mib": max(s[f"{name}_mib"] for s in steps) - loaded for name in ("rollout", "train")}
    return seconds | memory


def catalog(size: int, lists: int = 512) -> dict[str, float]:
    """Return milliseconds a list of judging and scoring, seconds of indexing, and MiB, for a catalog of `size` items."""
    draws = random.Random(size)
    words = ["".join(draws.choices("aeioubcdfghklmnprstvw", k=draws.randint(3, 9))) for _ in range(5_000)]

    def item() -> Item:
        return Item(" ".join(draws.choices(words, k=draws.randint(1, 4))).title(), draws.randint(1930, 2024))

    cfg = config("data=movieland", "logger=none", f"n={N}")
    items = list(dict.fromkeys(item() for _ in range(size * 2)))[:size]
    asked = [
        Conversation(str(i), str(i), (Message("user", "films"),), tuple(draws.choices(items, k=3)), split="train")
        for i in range(lists)
    ]  # fmt: skip
    texts = [format([draws.choice(items) if k % 2 else item() for k in range(N)]) for _ in asked]
    reset_peak()
    before = resident_mib()
    made = clocked(lambda: Dataset(Catalog(items), {"train": asked}))
    judges = judge(cfg, made.result.catalog)
    scorer = clocked(lambda: evaluator(cfg, made.result))
    first = clocked(lambda: judges(texts[:1], asked[:1], torch.device("cpu")))  # builds the index of titles
    judged = clocked(lambda: judges(texts, asked, torch.device("cpu")))
    scored = clocked(lambda: scorer.result.score(texts, asked).summary())
    return {
        "index": made.seconds + scorer.seconds + first.seconds,
        "judge": 1e3 * judged.seconds / lists,
        "score": 1e3 * scored.seconds / lists,
        "index_mib": peak_mib() - before,
    }


class clocked:
    """The result of a call and its seconds."""

    def __init__(self, work: Callable[[], Any]) -> None:
        start = time.perf_counter()
        self.result = work()
        self.seconds = time.perf_counter() - start


def measured(axis: str, value: int, workload: Path, given: argparse.Namespace) -> dict[str, float]:
    """Return the results of a point, measured in a process of its own."""
    if axis != "catalog":
        return step(axis, value, workload, given)
    command = [sys.executable, __file__, "--point", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=given.limit)
    return json.loads(done.stdout.splitlines()[-1])


def figure(points: dict[str, dict[str, dict[str, float]]], path: Path) -> Path:
    """Draw seconds above and memory below, one column an axis."""
    axes_shown = [axis for axis in AXES if points.get(axis)]
    with draw.style():
        drawn, grid = draw.panels(2, len(axes_shown), (3.1 * len(axes_shown) + 0.4, 5.6))
        for column, axis in enumerate(axes_shown):
            own = {int(value): point for value, point in points[axis].items()}
            is_catalog = axis == "catalog"
            seconds = (
                {"judge": "judging", "score": "scoring"} if is_catalog else {"rollout": "rollout", "train": "training"}
            )
            memory = {"index_mib": "index"} if is_catalog else {"rollout_mib": "rollout", "train_mib": "training"}
            units = ("ms a list" if is_catalog else "s a step", "MiB")
            for row, (names, unit) in enumerate(zip((seconds, memory), units, strict=True)):
                panel = grid[row, column]
                for name, label in names.items():
                    panel.plot(sorted(own), [own[value][name] for value in sorted(own)], marker="o", label=label)
                panel.set(xlabel=TITLES[axis], ylabel=unit)
                panel.set_ylim(bottom=0)
                panel.set_xlim(left=0)
                if is_catalog:
                    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
                panel.legend()
        return draw.save(drawn, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--fresh", action="store_true", help="measure points again that have a result")
    parser.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="keys of our config")
    parser.add_argument("--limit", type=float, default=240, help="seconds of a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.point:
        print(json.dumps(catalog(given.point)))
        return 0
    result: dict[str, Any] = {"machine": machine(given.threads), "ours": given.ours, "points": {}}
    if given.out.exists():
        before = read_json(given.out)
        if [before[key] for key in ("machine", "ours")] == [result[key] for key in ("machine", "ours")]:
            result = before
        elif not given.fresh:
            sys.exit(f"{given.out} was measured with other settings or on another machine. Add --fresh, or --out FILE.")
    wanted = [
        (axis, value) for axis in given.axes for value in AXES[axis]
        if given.fresh or str(value) not in result["points"].get(axis, {})
    ]  # fmt: skip
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        lengths = {value if axis == "prompt" else PROMPT for axis, value in wanted if axis != "catalog"}
        if lengths:
            prepare(Path(scratch), sorted(lengths), PROMPTS * (WARM_UP + REPEATS), given.seed)
        for axis, value in wanted:
            try:
                point = measured(axis, value, Path(scratch), given)
            except (Silent, subprocess.SubprocessError) as error:
                print(f"{axis} {value:,}: {error}", flush=True)
                failed += 1
                continue
            result["points"].setdefault(axis, {})[str(value)] = point
            result["commit"] = commit()
            print(f"{axis} {value:,}: {', '.join(f'{name} {x:.3g}' for name, x in point.items())}", flush=True)
            write_json(given.out, result)
    if result["points"]:
        figure(result["points"], given.out.with_suffix(".png"))
    if result["points"] and given.out == OUT:
        image = f"![Seconds and memory against prompt length, G, n and catalog](../experiments/{OUT.stem}.png)"
        insert(image, HERE.parents[1] / "docs" / "speed.md", GROWTH_HERE)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
