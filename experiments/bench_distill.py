"""Stage 1's arithmetic at full size: time and memory of embedding, Remap, choosing, Adjust.

    python experiments/bench_distill.py                                    # 7,404 items x 100,000 conversations
    python experiments/bench_distill.py --conversations 5000 --dense       # and vectors as a sentence embedder gives them

Texts are ReDial's (../shared/data/redial), repeated: items have the metadata of its films, conversations are its dialogues, cut
and joined at random; lists are films drawn by popularity. What is timed does not depend on whether they make sense.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from convrec_r1.base.files import write_json
from convrec_r1.distill.adjust import Wanted, _nll, fit_adjust
from convrec_r1.distill.config import RemapConfig, TfidfConfig
from convrec_r1.distill.embedders.tfidf import TfidfEmbedder
from convrec_r1.distill.metadata import read_metadata
from convrec_r1.distill.remap import RemapInputs, remap_block
from convrec_r1.distill.scores import ScoreStore

ROOT = Path(__file__).parent
REDIAL = ROOT.parents[1] / "shared" / "data" / "redial"
GIB = 2**30
DENSE = 384
"""Dimensions of all-MiniLM-L6-v2."""


def memory() -> float:
    """GiB of this process's own memory (pages of files that may be dropped at any time are not in it)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / GIB
    return float("nan")


class Clock:
    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, work):
        start = time.perf_counter()
        found = work()
        self.parts[name] = {"seconds": round(time.perf_counter() - start, 2), "memory_gib": round(memory(), 2)}
        print(
            f"{name:<28}{self.parts[name]['seconds']:>10.1f} s {self.parts[name]['memory_gib']:>8.2f} GiB", flush=True
        )
        return found


def conversations(count: int, rng: np.random.Generator) -> list[str]:
    said = [
        message["text"]
        for line in (REDIAL / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
        for message in json.loads(line)["messages"]
    ]
    picked = rng.integers(0, len(said), (count, 6))
    return ["\n".join(said[at] for at in row) for row in picked]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=100_000)
    arguments.add_argument("--items", type=int, default=7_404)
    arguments.add_argument("--dense", action="store_true")
    given = arguments.parse_args()
    rng, clock = np.random.default_rng(0), Clock()
    texts = [metadata.text() for metadata in read_metadata(REDIAL / "movies.jsonl").values()]
    items = [texts[at % len(texts)] + f"\nnumber{at}" for at in range(given.items)]
    talk = conversations(given.conversations, rng)
    fame = 1 / np.arange(1, given.items + 1)
    lists = [rng.choice(given.items, 20, replace=False, p=fame / fame.sum()) for _ in range(given.conversations)]
    truths = [rng.choice(given.items, 2, replace=False, p=fame / fame.sum()) for _ in range(given.conversations)]

    if given.dense:

        def random(count: int) -> np.ndarray:
            vectors = rng.normal(size=(count, DENSE)).astype(np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        vectors, spoken = random(given.items), random(given.conversations)
    else:
        vectors, spoken = clock("embed", lambda: TfidfEmbedder(TfidfConfig()).embed(items, talk))
    inputs = RemapInputs(lists, np.arange(given.items), given.items, vectors, vectors, spoken)

    with tempfile.TemporaryDirectory() as folder, ScoreStore(Path(folder), given.conversations, given.items) as store:

        def remap() -> None:
            for start in range(0, given.conversations, 1024):
                rows = range(start, min(start + 1024, given.conversations))
                store.write(rows, remap_block(inputs, rows, RemapConfig()))

        clock("Remap", remap)
        candidates = clock("choose 100 of each", lambda: store.top(100))
        row, column = np.nonzero(candidates >= 0)
        judged = rng.integers(-2, 3, len(row)).astype(np.float32)
        clock("add ratings", lambda: store.add(row, candidates[row, column], 0.5 * judged))
        pairs = Wanted.of(np.arange(given.conversations), truths, given.items)
        ones, zeros = np.ones(given.items), np.zeros(given.items)
        slopes = tuple(torch.zeros(given.items, dtype=torch.float64) for _ in range(2))
        clock("Adjust, one evaluation", lambda: _nll(store.read, pairs, ones, zeros, slopes))
        fitted = clock("Adjust", lambda: fit_adjust(store, range(given.conversations), truths, 0.01))
        clock("choose 20 of each", lambda: store.top(20, scale=fitted.w, shift=fitted.b))
        size = given.conversations * given.items * 4 / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(f"file of scores {size:.2f} GiB; most memory, pages of that file included, {peak:.2f} GiB")
    name = f"bench_distill{'_dense' if given.dense else ''}.json"
    write_json(
        ROOT / name,
        {
            "machine": f"{platform.machine()}, 2 cores",
            "items": given.items,
            "conversations": given.conversations,
            "scores_gib": round(size, 2),
            "peak_rss_gib": round(peak, 2),
            "adjust_iterations": fitted.iterations,
            "parts": clock.parts,
        },
    )


if __name__ == "__main__":
    main()
