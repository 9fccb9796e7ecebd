"""Average precision of a list; its mean over conversations is MAP."""

from typing import ClassVar

import numpy as np

from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric
from convrec_r1.evaluate.metrics.ranking import checked


class AveragePrecision(Metric):
    """`ap@n`: precision at the rank of each hit, summed and divided by the number of ground truths.

    With rel_j in {0, 1} the relevance of rank j and R the number of ground truths:

        AP@n = 1/R sum_{j<=n} rel_j (sum_{i<=j} rel_i) / j

    Buckley and Voorhees, SIGIR 2000; trec_eval's map_cut. The divisor is R, not min(n, R): a conversation with more
    ground truths than ranks stays below 1. 0 without ground truths or hits.
    """

    labels: ClassVar[Labels] = {"ap@{n}": Label("Average precision@{n}", "Ranking")}

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rel, truths = checked(lists.hits, lists.n_relevant)
        return {f"ap@{lists.n}": average_precision(rel, truths)}


def average_precision(rel: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Return the average precision of each list [B], from relevance [B, N] and numbers of ground truths [B]."""
    precision = np.cumsum(rel, axis=1) / np.arange(1, rel.shape[1] + 1)
    # The rounding of a running sum does not depend on the batch size.
    total = np.cumsum(np.concatenate([np.zeros((len(rel), 1)), precision * rel], axis=1), axis=1)[:, -1]
    return np.divide(total, truths, out=np.zeros(len(rel)), where=truths > 0)
