"""Gini index of exposure: inequality of the recommendations over the catalog."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from convrec_r1.evaluate.metrics.base import Label, Labels, Metric
from convrec_r1.evaluate.sample import Sample


class Gini(Metric):
    """`catalog/gini`: Gini index of the number of lists that each catalog item appears in, within the first n ranks.

    With these counts in rising order, x_(1) <= ... <= x_(C), over all C items of the catalog:

        G = sum_i (2 i - C - 1) x_(i) / (C sum_i x_(i))

    0: all items appear equally often. (C - 1) / C: only one item appears. As a measure of recommendations: Adomavicius and
    Kwon, TKDE 24(5), 2012. Items without a list count as 0. Repeats in a list count once. Not defined if no list has a
    catalog item. Like coverage, it depends on the number of lists.
    """

    labels: ClassVar[Labels] = {"catalog/gini": Label("Gini index of exposure", "Reach", better="low", per_list=False)}

    def overall(self, samples: Sequence[Sample], catalog_size: int) -> dict[str, float]:
        counts = np.zeros(catalog_size, dtype=np.int64)
        for sample in samples:
            counts[list(sample.covered)] += 1
        return {"catalog/gini": gini(counts)}


def gini(counts: np.ndarray) -> float:
    """Return the Gini index of non-negative counts [C]; nan if all are 0."""
    total, size = int(counts.sum()), len(counts)
    if not total:
        return math.nan
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float((weights * np.sort(counts)).sum() / (size * total))
