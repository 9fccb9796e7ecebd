"""Share of lists with a hit at each rank."""

from collections.abc import Sequence
from typing import ClassVar

from convrec_r1.evaluate.metrics.base import Label, Labels, Metric
from convrec_r1.evaluate.sample import Sample


class RankHits(Metric):
    """`rank/<k>/hit`: share of the lists with a hit at rank k. Shorter lists count as misses."""

    labels: ClassVar[Labels] = {"rank/{rank}/hit": Label("Hits at rank {rank}", "Ranks", percent=True, per_list=False)}

    def overall(self, samples: Sequence[Sample], catalog_size: int) -> dict[str, float]:
        found = {}
        for rank in range(max(len(sample.hits) for sample in samples)):
            hits = sum(sample.hits[rank] for sample in samples if rank < len(sample.hits))
            found[f"rank/{rank + 1}/hit"] = hits / len(samples)
        return found
