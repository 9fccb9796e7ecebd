"""Where a list repeats itself, and what its other lines are worth: python experiments/repeats_by_rank.py 'outputs/STUDY/*'.

Per system and stretch of ranks: share of lines that name what an earlier line named, and share of hits among the others.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convrec_r1.evaluate.scoring import Sample
from convrec_r1.lists import lines, parse_line
from convrec_r1.studies.run_files import find_runs
from convrec_r1.studies.study import read_study

STRETCHES = ((1, 5), (6, 10), (11, 15), (16, 20))


def counts(samples: Sequence[Sample], n: int) -> np.ndarray:
    """[3, n]: lines, repeats and hits at each rank."""
    found = np.zeros((3, n))
    for sample in samples:
        named = set()
        for rank, line in enumerate(lines(sample.text)[:n]):
            item = parse_line(line, year_required=False)
            key = str(item).casefold() if item else None
            found[:, rank] += (1, key is not None and key in named, sample.hits[rank])
            named.add(key)
    return found


def main() -> None:
    study = read_study(find_runs(sys.argv[1:]))
    totals = defaultdict(lambda: np.zeros((3, study.n)))
    for system in study.systems:
        for replicate in system.replicates:
            totals[system.label] += counts(replicate.samples, study.n)
    stretches = [(low, high) for low, high in STRETCHES if high <= study.n]
    print("| repeats / hits among the other lines, % |" + "".join(f" ranks {low}-{high} |" for low, high in stretches))
    print("|---|" + "--:|" * len(stretches))
    for label, table in totals.items():
        cells = []
        for low, high in stretches:
            written, repeated, hits = table[:, low - 1 : high].sum(1)
            cells.append(f" {100 * repeated / max(1, written):.1f} / {100 * hits / max(1, written - repeated):.1f} |")
        print(f"| {label} |" + "".join(cells))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
