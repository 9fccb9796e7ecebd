"""Novelty: self-information of the recommended items."""

from typing import ClassVar

import numpy as np

from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric


class Novelty(Metric):
    """`popularity/novelty`: mean self-information, in bits, of a list's distinct catalog items within the first n ranks.

        -log2 p(item),    p(item) = max(1, interactions of the item) / all interactions

    Zhou et al., PNAS 107(10), 2010; Vargas and Castells, RecSys 2011. Interactions are the ground truths of the training
    conversations. An item without interactions counts as one with a single interaction: its self-information would be
    infinite. Not defined for a list without a catalog item, or without interactions.
    """

    labels: ClassVar[Labels] = {
        "popularity/novelty": Label("Novelty (self-information), bits", "Reach", better="none", digits=2)
    }

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        values = np.full(len(lists), np.nan)
        total = lists.popularity.total
        if total:
            information = np.log2(total) - np.log2(np.maximum(lists.popularity.counts, 1))
            for at, places in enumerate(lists.covered):
                if places:
                    values[at] = information[places].mean()
        return {"popularity/novelty": values}
