"""Mean popularity rank of a list's items."""

from typing import ClassVar

import numpy as np

from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric


class PopularityRank(Metric):
    """`popularity/mean_rank`: mean rank by popularity of a list's distinct catalog items within the first n ranks.

    1 is the most frequent ground truth of training; a low value means a bias to popular items. Not defined for a list without
    a catalog item, or without interactions.
    """

    labels: ClassVar[Labels] = {
        "popularity/mean_rank": Label("Popularity rank of items, mean", "Reach", better="none", digits=2),
    }

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        values = np.full(len(lists), np.nan)
        if lists.popularity.total:
            for at, places in enumerate(lists.covered):
                if places:
                    values[at] = lists.popularity.ranks[places].mean()
        return {"popularity/mean_rank": values}
