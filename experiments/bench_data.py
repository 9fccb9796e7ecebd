"""Seconds and memory of loading data of the real size. Prints a table and writes experiments/bench_data.json.

python experiments/bench_data.py [--rows 10000 100000 400000] [--items 7400 100000] [--memory-rows 100000] [--out FILE]

The rows are made up, in the form of Reddit-v2 (JSONL): prompts of 1,400 characters, three ground truths, lists of 20. A load is
a process of its own: in memory (up to --memory-rows), the first load with its preparation, and a later load. Memory is what the
process takes beyond its imports: at most (peak), and after loading (resident; mapped pages included).
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convrec_r1.base.files import write_json

_WORDS = [f"w{number}" for number in range(5000)]


def make(folder: Path, rows: int, items: int) -> None:
    rng = random.Random(0)
    films = [(f"Film {number} of {rng.choice(_WORDS)}", 1950 + number % 70) for number in range(items)]
    folder.mkdir()
    (folder / "catalog.csv").write_text("title,year\n" + "".join(f"{title},{year}\n" for title, year in films))
    sizes = {"validation": rows // 40, "test": rows // 40}
    sizes = {"train": rows - sum(sizes.values()), **sizes}
    for split, size in sizes.items():
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(size):
                said = " ".join(rng.choices(_WORDS, k=245))
                listed = "\n".join(f"{title} ({year})" for title, year in rng.choices(films, k=20))
                row = {
                    "sample_id": f"{split}_{number}",
                    "prompt": [{"role": "user", "content": f"Here is the conversation: USER: {said}"}],
                    "completion": [{"role": "assistant", "content": listed}],
                    "seen_titles": [rng.choice(films)[0]],
                    "groundtruth_with_release_year": [[title, str(year)] for title, year in rng.choices(films, k=3)],
                }
                file.write(json.dumps(row) + "\n")


def memory(name: str) -> float:
    """Return a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))


def load(folder: Path, kept: Path | None) -> dict[str, float]:
    import pandas  # noqa: F401  pyarrow imports both when it has to
    import pyarrow.compute  # noqa: F401

    from convrec_r1.data.config import FilmsConfig, PromptStyle
    from convrec_r1.data.load import digests, load_data
    from convrec_r1.evaluate.popularity import Popularity
    from convrec_r1.matching import Normalised

    cfg = FilmsConfig("convrec_r1.data.adapters.reddit_v2.RedditV2", "reddit_v2", path=str(folder))
    cfg.prompt = PromptStyle.published
    before, start = memory("VmRSS"), time.perf_counter()
    data = load_data(cfg, 20, Normalised(), kept=kept)
    loaded = time.perf_counter()
    digests(data)
    told = time.perf_counter()
    Popularity.from_conversations(data["train"], data.catalog, Normalised())
    counted = time.perf_counter()
    resident = memory("VmRSS") - before
    rows = random.Random(1).choices(range(len(data["train"])), k=1000)
    begun = time.perf_counter()
    for row in rows:
        data["train"][row]
    return {
        "load s": loaded - start, "digests s": told - loaded, "popularity s": counted - told,
        "resident MB": resident, "peak MB": memory("VmHWM") - before, "a row us": (time.perf_counter() - begun) * 1000,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 400_000])
    parser.add_argument("--items", type=int, nargs="+", default=[7_400, 100_000])
    parser.add_argument("--memory-rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        folder, kept = arguments.load
        print(json.dumps(load(Path(folder), Path(kept) if kept else None)))
        return
    measured = []
    for items in arguments.items:
        for rows in arguments.rows:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "data"
                make(folder, rows, items)
                time.sleep(2.1)  # digests of files younger than this are not kept
                for kind, kept in (("in memory", ""), ("first", f"{scratch}/kept"), ("later", f"{scratch}/kept")):
                    if kept or rows <= arguments.memory_rows:
                        command = [sys.executable, __file__, "--load", str(folder), kept]
                        done = subprocess.run(command, check=True, capture_output=True, text=True)
                        values = json.loads(done.stdout.splitlines()[-1])
                        measured.append({"rows": rows, "items": items, "load": kind, **values})
                        print(
                            f"{rows:>9,} rows {items:>8,} items {kind:<10}",
                            *(f"{k}: {v:.2f} " for k, v in values.items()),
                        )
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    write_json(arguments.out, {"machine": machine, "measured": measured})


if __name__ == "__main__":
    main()
