"""Ranking metrics over binary relevance: NDCG@k, Recall@k, hit rate@k, MRR.

With rel_j in {0, 1} the relevance of rank j (from 1) and R the number of ground truths:

    Recall@k   = sum_{j<=k} rel_j / R
    DCG@k      = sum_{j<=k} rel_j / log2(j + 1)          Järvelin and Kekäläinen, TOIS 20(4), 2002, base-2 discount
    NDCG@k     = DCG@k / IDCG@k
    MRR        = 1 / (rank of the first hit), 0 without one; over the whole list, not cut at any k
    HitRate@k  = 1 if sum_{j<=k} rel_j > 0, otherwise 0

`ideal` chooses the list that IDCG@k belongs to:

    "standard"  min(k, R) hits in front, whether or not they were retrieved (as trec_eval's ndcg_cut). The default.
    "paper"     min(k, R, L) hits in front, as in the public Rank-GRPO code. L is the number of recommendations that are in the
                catalog and not seen. Never below "standard", and equal to it if L >= min(k, R).

Edge cases:
- R = 0: all metrics are 0.0. The caller decides whether such lists count in a mean.
- No hit: all metrics are 0.0, also if IDCG is 0 ("paper" with L = 0).
- Missing ranks of a list shorter than k are misses. The ideal list is not shortened.
- More hits than ground truths: ValueError. Each ground truth can be hit once.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from convrec_r1.evaluate.metrics.base import Label, Labels, Lists, Metric

Ideal = Literal["standard", "paper"]


class NDCG(Metric):
    """`ndcg@k`: normalised discounted cumulative gain (formula and edge cases: this module's docstring)."""

    labels: ClassVar[Labels] = {"ndcg@{k}": Label("NDCG@{k}", "Ranking")}

    def __init__(self, ideal: Ideal = "standard") -> None:
        self.ideal: Ideal = _known(ideal)

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rel, truths = checked(lists.hits, lists.n_relevant)
        lengths = lists.countable if self.ideal == "paper" else None
        return {f"ndcg@{k}": ndcg(rel, truths, k, self.ideal, lengths) for k in lists.ks}


class Recall(Metric):
    """`recall@k`: share of the ground truths within the first k ranks (edge cases: this module's docstring)."""

    labels: ClassVar[Labels] = {"recall@{k}": Label("Recall@{k}", "Ranking")}

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rel, truths = checked(lists.hits, lists.n_relevant)
        return {f"recall@{k}": recall(rel, truths, k) for k in lists.ks}


class HitRate(Metric):
    """`hit_rate@k`: 1 if any of the first k ranks is a hit, otherwise 0.

    The mean is the share of conversations with a hit (Deshpande and Karypis, TOIS 22(1), 2004). 0 without ground truths.
    """

    labels: ClassVar[Labels] = {"hit_rate@{k}": Label("Hit rate@{k}", "Ranking", percent=True)}

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rel, _ = checked(lists.hits, lists.n_relevant)
        return {f"hit_rate@{k}": np.asarray(rel[:, :k].max(axis=1, initial=0.0)) for k in lists.ks}


class MRR(Metric):
    """`mrr`: reciprocal rank of the first hit (Voorhees, TREC-8, 1999; edge cases: this module's docstring)."""

    labels: ClassVar[Labels] = {"mrr": Label("MRR", "Ranking")}

    def per_list(self, lists: Lists) -> dict[str, np.ndarray]:
        rel, _ = checked(lists.hits, lists.n_relevant)
        return {"mrr": reciprocal_rank(rel)}


def ranking_metrics(
    relevance: ArrayLike,
    n_relevant: ArrayLike,
    ks: Sequence[int],
    *,
    ideal: Ideal = "standard",
    lengths: ArrayLike | None = None,
) -> dict[str, float]:
    """Return `ndcg@k` and `recall@k` for every k in `ks`, and `mrr`: means over the lists.

    Args:
        relevance: 0 or 1 per rank, one list [N] or several [B, N].
        n_relevant: number of ground truths, one number for all lists or [B].
        ks: cut-offs, each at least 1.
        ideal: "standard" or "paper" (this module's docstring).
        lengths: L of each list, for ideal="paper". None: N.
    Raises:
        ValueError: no list, an invalid shape or value, or an unknown `ideal`.
    """
    rel = np.asarray(relevance)
    if rel.ndim == 1:
        rel = rel[None, :]
    if rel.ndim == 2 and rel.shape[0] == 0:
        raise ValueError("ranking_metrics needs at least one list")
    return {
        name: float(values.mean())
        for name, values in per_list_metrics(rel, n_relevant, ks, ideal=ideal, lengths=lengths).items()
    }


def per_list_metrics(
    relevance: ArrayLike,
    n_relevant: ArrayLike,
    ks: Sequence[int],
    *,
    ideal: Ideal = "standard",
    lengths: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """Return the same metrics of each list: [B] per name, from `relevance` [B, N] and `n_relevant` [B].

    A list's values do not depend on the other lists in the batch, to the last bit.
    """
    rel, truths = checked(relevance, n_relevant)
    _known(ideal)
    ks = [int(k) for k in ks]
    if any(k < 1 for k in ks):
        raise ValueError(f"every k must be at least 1, found {ks}")
    found = {f"ndcg@{k}": ndcg(rel, truths, k, ideal, lengths) for k in ks}
    found |= {f"recall@{k}": recall(rel, truths, k) for k in ks}
    return found | {"mrr": reciprocal_rank(rel)}


def ndcg(
    rel: np.ndarray, truths: np.ndarray, k: int, ideal: Ideal = "standard", lengths: ArrayLike | None = None
) -> np.ndarray:
    """Return NDCG@k of each list [B], from `checked` relevance [B, N] and numbers of ground truths [B]."""
    n_ranks = rel.shape[1]
    discount = 1.0 / np.log2(np.arange(2, max(n_ranks, k) + 2))
    ideal_dcg = np.concatenate([[0.0], np.cumsum(discount)])  # by number of hits in front
    ideal_hits = truths
    if ideal == "paper":
        ideal_hits = np.minimum(truths, n_ranks if lengths is None else np.asarray(lengths, dtype=np.int64))
    # The rounding of a running sum does not depend on the cut-off.
    dcg = np.cumsum(np.concatenate([np.zeros((len(rel), 1)), rel * discount[:n_ranks]], axis=1), axis=1)
    return _ratio(dcg[:, min(k, n_ranks)], ideal_dcg[np.minimum(ideal_hits, k)])


def recall(rel: np.ndarray, truths: np.ndarray, k: int) -> np.ndarray:
    """Return Recall@k of each list [B]."""
    return _ratio(rel[:, :k].sum(axis=1), truths)


def reciprocal_rank(rel: np.ndarray) -> np.ndarray:
    """Return the reciprocal rank of each list's first hit [B], 0 without one."""
    n_lists, n_ranks = rel.shape
    found = rel.any(axis=1) if n_ranks else np.zeros(n_lists, dtype=bool)
    first = rel.argmax(axis=1) + 1 if n_ranks else np.ones(n_lists)
    return found / first


def checked(relevance: ArrayLike, n_relevant: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return relevance as float [B, N] and the number of ground truths as int [B]. ValueError if they are not valid."""
    rel = np.asarray(relevance, dtype=np.float64)
    if rel.ndim != 2:
        raise ValueError(f"relevance must be one list [N] or a batch of lists [B, N], found shape {rel.shape}")
    if not np.isin(rel, (0.0, 1.0)).all():
        raise ValueError("relevance must be 0 or 1 at every rank")
    counts = np.asarray(n_relevant)
    if counts.ndim > 1 or (counts.ndim == 1 and len(counts) != len(rel)):
        raise ValueError(f"n_relevant must be one number or one per list ({len(rel)}), found shape {counts.shape}")
    truths = np.broadcast_to(counts, len(rel)).astype(np.int64)
    if (truths != counts).any() or (truths < 0).any():
        raise ValueError("n_relevant must be whole numbers, 0 or more")
    rel = np.where(truths[:, None] > 0, rel, 0.0)
    if (rel.sum(axis=1) > truths).any():
        raise ValueError("a list has more hits than ground truths; each ground truth can be hit once")
    return rel, truths


def _known(ideal: Ideal) -> Ideal:
    if ideal not in get_args(Ideal):
        raise ValueError(f'ideal must be "standard" or "paper", found {ideal!r}')
    return ideal


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return numerator / denominator, 0 for a denominator of 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
