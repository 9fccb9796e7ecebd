"""Run folders without training: written by the writers that real runs use, with whatever lists and curves a test wants."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from support import compose_config

from convrec_r1.data import Catalog, Conversation
from convrec_r1.data.schema import Message
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.runner import write_asked
from convrec_r1.evaluate.scoring import Evaluation, score
from convrec_r1.lists import Item, format
from convrec_r1.run.folder import RunFolder
from convrec_r1.run.tracker import JsonlSink

N = 5
ITEMS = [Item(f"Film {letter}", 1990 + i) for i, letter in enumerate("ABCDEFGHIJKLMNOPQRST")]
CATALOG = Catalog(ITEMS)


_composed = lru_cache(compose_config)  # most tests want the same few


def conversation(number: int, truths: Sequence[Item], *, cluster: str = "", seen: Sequence[str] = ()) -> Conversation:
    name = f"c{number:03}"
    return Conversation(
        id=name, cluster=cluster or name, messages=(Message("user", f"Question {number}?"),), ground_truth=tuple(truths),
        seen=tuple(seen), split="test",
    )  # fmt: skip


def judge(
    texts: Sequence[str], conversations: Sequence[Conversation], n: int = N, ks: Sequence[int] = (N,)
) -> Evaluation:
    popularity = Popularity.from_conversations([conversation(0, [item]) for item in ITEMS], CATALOG)
    return score(texts, conversations, CATALOG, popularity, n=n, ks=ks)


def list_with_hits(asked: Conversation, hits: Sequence[int]) -> str:
    """A list with ground truths at the ranks where `hits` has a 1, and other films of the catalog elsewhere."""
    truths = iter(asked.ground_truth)
    others = iter(item for item in ITEMS if item not in asked.ground_truth and item.title not in asked.seen)
    return format([next(truths) if hit else next(others) for hit in hits])


def write_run(
    path: Path,
    conversations: Sequence[Conversation],
    texts: Sequence[str],
    *overrides: str,
    baselines: Mapping[str, Sequence[str]] | None = None,
    curves: Mapping[str, Callable[[int], float]] | None = None,
    steps: Sequence[int] = (),
    validation: Sequence[tuple[int, float]] = (),
    keep_conversations: bool = True,
    n: int = N,
    ks: Sequence[int] = (N,),
    **summary,
) -> Path:
    """A finished run of `overrides` whose policy wrote `texts`. `curves`: training metrics as functions of the step."""
    cfg = _composed("logger=none", f"n={n}", f"eval.ks=[{','.join(map(str, ks))}]", *overrides)
    folder = RunFolder(path)
    folder.begin(cfg)
    judge(texts, conversations, n, ks).write_jsonl(folder.eval / "test.jsonl")
    for name, lists in (baselines or {}).items():
        judge(lists, conversations, n, ks).write_jsonl(folder.eval / f"test.{name}.jsonl")
    if keep_conversations:
        write_asked(conversations, folder.eval / "test.conversations.jsonl")
    sink = JsonlSink(folder.metrics)
    for step, value in validation:
        sink.log(step, "validation", {f"val/ndcg@{max(ks)}": value})
    for step in steps:
        sink.log(step, "train", {name: f(step) for name, f in (curves or {}).items()})
    folder.finish({"git_sha": "abc123def456", "seconds": 12.5, "algo": cfg.algo.name, **summary})
    return path


def lifelike(step: int, seed: int, rise: float, n: int = N) -> dict[str, float]:
    """Training metrics under the names that modules/rl.py logs them by, with noise and a trend."""
    noise = np.random.default_rng((seed, step))
    progress = 1 - math.exp(-step / 60)
    values = {
        "reward": 0.45 + rise * progress + 0.05 * noise.normal(),
        "kl": 0.08 * progress * (1 + 0.1 * noise.normal()),
        "entropy": 1.25 - 0.3 * progress + 0.02 * noise.normal(),
        "clip_ratio/region_mean": 0.02 * progress * abs(1 + 0.2 * noise.normal()),
        "frac_reward_zero_std": 0.1 + 0.02 * noise.normal(),
        "grad_norm": 0.3 + 0.05 * noise.normal(),
        "list/length": n + 0.3 * noise.normal(),
        "list/duplicates": 0.12 * n * (1 - 0.6 * progress) + 0.05 * noise.normal(),
        "list/seen": 0.8 - 0.5 * progress + 0.05 * noise.normal(),
        "catalog/valid": 0.985 + 0.01 * progress + 0.002 * noise.normal(),
        "time/step": 3.2 + 0.3 * noise.normal(),
        "tokens_per_second": 1600 + 60 * noise.normal(),
        "completions/mean_length": 2.05 * n + 0.4 * noise.normal(),
    }
    for k in range(n):
        share = (0.5 if rise < 0.1 else 0.8) ** (k / n)
        values[f"rank/{k + 1}/reward"] = max(
            0.0, 0.12 * share * (1 + rise * progress * 4 * (k + 1) / n) + 0.02 * noise.normal()
        )
    return values
