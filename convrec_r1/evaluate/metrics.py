"""Ranking metrics over binary relevance: NDCG@k, Recall@k, MRR.

With rel_j in {0, 1} the relevance of rank j (from 1) and R the number of ground truths:

    Recall@k = sum_{j<=k} rel_j / R
    DCG@k    = sum_{j<=k} rel_j / log2(j + 1)          Järvelin and Kekäläinen, TOIS 20(4), 2002, base-2 discount
    NDCG@k   = DCG@k / IDCG@k
    MRR      = 1 / (rank of the first hit), 0 without one; over the whole list, not cut at any k

`ideal` chooses the list that IDCG@k belongs to:

    "standard"  min(k, R) hits in front, whether or not they were retrieved (as trec_eval's ndcg_cut). The default.
    "paper"     min(k, R, L) hits in front, L the number of recommendations that count (in the catalog, not seen): a
                list that is too short is not held to more than it could hold. What the public Rank-GRPO code computes;
                never below "standard", equal to it wherever L >= min(k, R).

Edge cases:
- R = 0: every metric is 0.0, whatever the relevance says. The caller decides whether such lists belong in a mean.
- No hit: every metric is 0.0, also where IDCG is 0 ("paper" with L = 0).
- A list shorter than k counts as followed by misses; the ideal list is not shortened with it.
- More hits than ground truths: ValueError. A ground truth can be hit once, so the input is wrong.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

Ideal = Literal["standard", "paper"]


def ranking_metrics(
    relevance: ArrayLike,
    n_relevant: ArrayLike,
    ks: Sequence[int],
    *,
    ideal: Ideal = "standard",
    lengths: ArrayLike | None = None,
) -> dict[str, float]:
    """`ndcg@k` and `recall@k` for every k in `ks`, and `mrr` (formulas and edge cases: this module's docstring).

    `relevance` is 0 or 1 per rank of one list [N], with `n_relevant` its number of ground truths; or [B, N] with
    `n_relevant` [B] (or one number for all): then the means over the B lists. `lengths`: L of each list, for
    ideal="paper"; by default N.
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
    """The metrics of each list: [B] per name, from `relevance` [B, N] and `n_relevant` [B].

    A list's values do not depend on the other lists in the batch, to the last bit.
    """
    rel, truths = _checked(relevance, n_relevant)
    if ideal not in get_args(Ideal):
        raise ValueError(f'ideal must be "standard" or "paper", found {ideal!r}')
    ks = [int(k) for k in ks]
    if any(k < 1 for k in ks):
        raise ValueError(f"every k must be at least 1, found {ks}")

    n_lists, n_ranks = rel.shape
    discount = 1.0 / np.log2(np.arange(2, max([n_ranks, *ks]) + 2))
    ideal_dcg = np.concatenate([[0.0], np.cumsum(discount)])  # by number of hits in front
    start = np.zeros((n_lists, 1))
    hits = np.concatenate([start, np.cumsum(rel, axis=1)], axis=1)  # [B, N+1]: by cut-off
    dcg = np.concatenate([start, np.cumsum(rel * discount[:n_ranks], axis=1)], axis=1)  # [B, N+1]
    ideal_hits = truths
    if ideal == "paper":
        ideal_hits = np.minimum(truths, n_ranks if lengths is None else np.asarray(lengths, dtype=np.int64))

    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        metrics[f"ndcg@{k}"] = _ratio(dcg[:, min(k, n_ranks)], ideal_dcg[np.minimum(ideal_hits, k)])
    for k in ks:
        metrics[f"recall@{k}"] = _ratio(hits[:, min(k, n_ranks)], truths)
    found = rel.any(axis=1) if n_ranks else np.zeros(n_lists, dtype=bool)
    first = rel.argmax(axis=1) + 1 if n_ranks else np.ones(n_lists)
    metrics["mrr"] = found / first
    return metrics


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _checked(relevance: ArrayLike, n_relevant: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Relevance as float [B, N] and the number of ground truths as int [B], or ValueError."""
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
