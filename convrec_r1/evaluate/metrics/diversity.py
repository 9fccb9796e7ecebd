"""Intra-list diversity: mean distance between the items of a list."""

from typing import ClassVar

import numpy as np

from convrec_r1.data.catalog import Catalog
from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric


class Diversity(Metric):
    """`list/diversity`: mean distance between the tags of any two distinct catalog items within the first n ranks.

    With T_i the set of tags (genres, say) of item i, over the m items that have tags:

        2 / (m (m - 1)) sum_{i<j} d(i, j),    d(i, j) = 1 - |T_i and T_j| / |T_i or T_j|    (Jaccard distance)

    The mean pairwise distance of Smyth and McClave, ICCBR 2001; one minus Ziegler et al.'s intra-list similarity, WWW 2005.
    0: all items have the same tags; 1: no two share one. Tags are `catalog.metadata`. Not defined for a dataset
    without metadata, or a list with fewer than two items that have tags.
    """

    labels: ClassVar[Labels] = {"list/diversity": Label("Intra-list diversity", "Reach")}

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        values = np.full(len(lists), np.nan)
        tags = tag_matrix(lists.catalog)
        tagged = tags.sum(axis=1) > 0
        for at, places in enumerate(lists.covered):
            chosen = [place for place in places if tagged[place]]
            if len(chosen) > 1:
                values[at] = mean_distance(tags[chosen])
        return {"list/diversity": values}


def tag_matrix(catalog: Catalog) -> np.ndarray:
    """Return 1 for each tag of each item, else 0: float [C, number of tags], items in catalog order, tags sorted."""
    columns = {tag: at for at, tag in enumerate(sorted({tag for tags in catalog.metadata.values() for tag in tags}))}
    matrix = np.zeros((len(catalog), len(columns)))
    for row, item in enumerate(catalog):
        matrix[row, [columns[tag] for tag in catalog.metadata.get(item, ())]] = 1.0
    return matrix


def mean_distance(tags: np.ndarray) -> float:
    """Return the mean Jaccard distance between the rows of a binary matrix [m, number of tags]; no row may be empty."""
    shared = tags @ tags.T
    sizes = tags.sum(axis=1)
    distance = 1.0 - shared / (sizes[:, None] + sizes[None, :] - shared)
    return float(distance[np.triu_indices(len(tags), k=1)].mean())
