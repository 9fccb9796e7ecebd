"""What holding lists to the catalog costs with rollout=vllm (hf: bench_constraint.py). Writes a JSON file of its name.

python experiments/bench_constraint_vllm.py --catalog CATALOG.csv --vocabulary QWEN.tiktoken

7,404 items (Reddit-v2's catalog, title and year) and 151,936 tokens (Qwen's vocabulary: dashscope/resources/qwen.tiktoken of
the package dashscope), 64 lists at a time, a model of Qwen2.5-0.5B's shape with random weights. The constraint's part of a step
is measured inside the steps: what else the machine does falls on both.
"""

import argparse
import base64
import csv
import json
import pickle
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_rollouts import QWEN_05B, config, make_policy

from convrec_r1.base.files import write_json
from convrec_r1.config.parts import matching
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.load import load_data
from convrec_r1.lists import Item
from convrec_r1.policy import Policy
from convrec_r1.rollout.base import Sampling, make_engine, prompt_seed
from convrec_r1.rollout.constraint import Constraint, Opening, Vocabulary

LISTS, LINES = 64, 20


def read_items(path: Path) -> list[Item]:
    with path.open(newline="") as file:
        return [Item(row["title"], int(float(row["year"])) if row["year"] else None) for row in csv.DictReader(file)]


def read_vocabulary(path: Path, eos: int) -> Vocabulary:
    """Return the vocabulary of a file of base64 and ids."""
    pairs = (line.split() for line in path.read_text().splitlines())
    table = {int(token): base64.b64decode(text) for text, token in pairs}
    table.pop(eos, None)
    return Vocabulary(table, table, eos)


def openings(constraint: Constraint, count: int, rng: random.Random) -> list[Opening]:
    """What lists of 20 lines may hold: each of their users has seen ten items."""
    items = constraint.lines.items
    return [constraint.opening(LINES, [item.title for item in rng.sample(items, 10)]) for _ in range(count)]


class Clock:
    """Seconds of each call of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = self.function(*arguments, **options)
        self.seconds.append(time.perf_counter() - began)
        return result


def finding(constraint: Constraint, steps: int = 300) -> dict[str, float]:
    """Time to find the tokens of 64 lists, without an engine. Each list takes a random one of its tokens."""
    rng = random.Random(0)
    lists = [constraint.state(opening) for opening in openings(constraint, LISTS, rng)]
    seconds: dict[str, list[float]] = {"advance": [], "allowed": []}
    for _ in range(steps):
        began = time.perf_counter()
        sets = [one.allowed() for one in lists]
        seconds["allowed"].append(time.perf_counter() - began)
        chosen = [int(rng.choice(found.tokens())) for found in sets]
        began = time.perf_counter()
        for one, token in zip(lists, chosen, strict=True):
            one.advance(token)
        seconds["advance"].append(time.perf_counter() - began)
        ended = [row for row, one in enumerate(lists) if one.ended]
        for row, opening in zip(ended, openings(constraint, len(ended), rng), strict=True):
            lists[row] = constraint.state(opening)
    late = {name: values[steps // 2 :] for name, values in seconds.items()}
    return {f"ms a step of 64 lists, {name}": 1e3 * statistics.median(values) for name, values in late.items()}


def vllm(policy: Policy, constraint: Constraint, tokens: int, repeats: int) -> dict[str, float]:
    """Share of the logits processor in vLLM's steps. cold: the first lists after a start, warm: later ones."""
    from convrec_r1.rollout.vllm import catalog

    engine = make_engine(
        config("rollout=vllm", f"rollout.max_num_seqs={LISTS}").rollout,
        policy,
        max_length=64 + tokens,
        constraint=pickle.loads(pickle.dumps(constraint)),
    )
    engine.sync(policy)
    rng = random.Random(0)
    prompts = [[rng.randrange(1000) for _ in range(32)] for _ in range(LISTS)]
    sampling = Sampling(max_tokens=tokens)
    core: Any = engine
    results: dict[str, float] = {}
    with_it, without = [], []
    for turn in range(repeats + 1):
        seeds = [prompt_seed(turn, 0, k) for k in range(LISTS)]
        clocks = [Clock(catalog.HoldToCatalog.apply), Clock(catalog._List.allowed), Clock(core._llm.llm_engine.step)]
        apply, find, step = clocks
        catalog.HoldToCatalog.apply = lambda self, logits, apply=apply: apply(self, logits)
        catalog._List.allowed = lambda self, find=find: find(self)
        core._llm.llm_engine.step = step
        engine.generate(prompts, seeds, sampling, openings=openings(constraint, LISTS, rng))
        catalog.HoldToCatalog.apply, catalog._List.allowed = apply.function, find.function
        core._llm.llm_engine.step = step.function
        name = "warm" if turn else "cold"
        with_it.append(sum(step.seconds))
        if turn < 2:
            results |= {
                f"share of a step, {name}": sum(apply.seconds) / sum(step.seconds),
                f"ms a step, {name}": 1e3 * statistics.median(apply.seconds),
                f"us a list and token to find the tokens, {name}": 1e6 * statistics.median(find.seconds),
            }
        if turn:
            began = time.perf_counter()
            engine.generate(prompts, seeds, sampling)
            without.append(time.perf_counter() - began)
    engine.close()
    return results | {
        "ms a step of the engine": 1e3 * statistics.median(without) / tokens,
        "steps with the constraint / without": statistics.median(
            a / b for a, b in zip(with_it[1:], without, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, required=True, help="CSV with title and year")
    parser.add_argument("--vocabulary", type=Path, required=True, help="lines of a token in base64 and its id")
    parser.add_argument("--layers", type=int, default=QWEN_05B["num_hidden_layers"])
    parser.add_argument("--tokens", type=int, default=24, help="of a list")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    QWEN_05B["num_hidden_layers"] = given.layers
    cfg = config()
    policy = make_policy(cfg, load_data(cfg.data, cfg.seed), "qwen2.5-0.5b")
    vocabulary = read_vocabulary(given.vocabulary, policy.eos_ids[0])
    began = time.perf_counter()
    constraint = Constraint(Catalog(read_items(given.catalog)), matching(cfg), vocabulary)
    constraint.state(constraint.opening(LINES)).allowed()
    results = {
        "items": len(constraint.lines),
        "seconds to build it": time.perf_counter() - began,
        "MB as a file": len(pickle.dumps(constraint)) / 1e6,
        "finding the tokens alone": finding(constraint),
        "vllm": vllm(policy, constraint, given.tokens, given.repeats),
    }
    print(json.dumps(results, indent=2))
    write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
