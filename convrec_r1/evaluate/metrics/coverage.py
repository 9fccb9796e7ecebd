"""Catalog coverage: share of the catalog in at least one list."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from convrec_r1.evaluate.metrics.base import Label, Labels, Metric
from convrec_r1.evaluate.sample import Sample


class Coverage(Metric):
    """`catalog/coverage`: share of the catalog that appears in at least one list, within the first n ranks.

        |union of the lists' items| / |catalog|, 0 for an empty catalog

    Aggregate diversity as in Ge, Delgado-Battenfeld and Jannach, RecSys 2010. It grows with the number of lists, so compare
    only runs on the same conversations.
    """

    labels: ClassVar[Labels] = {"catalog/coverage": Label("Catalog coverage", "Reach", percent=True, per_list=False)}

    def overall(self, samples: Sequence[Sample], catalog_size: int) -> dict[str, float]:
        return {"catalog/coverage": catalog_coverage((sample.covered for sample in samples), catalog_size)}


def catalog_coverage(indices: Iterable[Iterable[int]], catalog_size: int) -> float:
    """Return the share of catalog indices that are in at least one list."""
    distinct = {at for per_list in indices for at in per_list}
    return len(distinct) / catalog_size if catalog_size else 0.0
