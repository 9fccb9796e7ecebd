"""Popularity bias of lists, compared with the ground truths."""

import numpy as np

from convrec_r1.evaluate.popularity import SEGMENTS, Popularity


def skew(places: np.ndarray, popularity: Popularity) -> dict[str, float]:
    """Return the popularity statistics of recommended items, given as places in the catalog (any shape; -1: none):

    head, mid, tail   share of the entries in each segment (evaluate.Popularity)
    mean_rank         mean popularity rank of the entries, 1 the most popular
    coverage          share of the catalog that occurs
    gini              of the counts of the catalog's items: 0 if all occur equally often, near 1 if only one occurs.
                      With counts x_(1) <= ... <= x_(C):  sum_i (2i - C - 1) x_(i) / (C sum_i x_(i))
    distance          total variation between the entries' distribution over items and that of the training ground truths,
                      1/2 sum_j |p_j - q_j|: 0 if items occur as often as users want them, 1 if nothing is shared

    Empty without entries. Without known interactions: no segments, mean_rank or distance.
    """
    entries = places[places >= 0]
    if not entries.size:
        return {}
    size = len(popularity.items)
    counts = np.bincount(entries, minlength=size).astype(np.float64)
    order = np.arange(1, size + 1)
    found = {
        "coverage": float((counts > 0).mean()),
        "gini": float(((2 * order - size - 1) * np.sort(counts)).sum() / (size * counts.sum())),
    }
    if popularity.total:
        segments = np.bincount(popularity.segments[entries], minlength=len(SEGMENTS)) / entries.size
        found |= dict(zip(SEGMENTS, map(float, segments), strict=True))
        found["mean_rank"] = float(popularity.ranks[entries].mean())
        found["distance"] = float(np.abs(counts / counts.sum() - popularity.counts / popularity.total).sum() / 2)
    return found


def truths_skew(popularity: Popularity) -> dict[str, float]:
    """Return the same statistics of the training ground truths: those of lists without bias."""
    return skew(np.repeat(np.arange(len(popularity.items)), popularity.counts), popularity)
