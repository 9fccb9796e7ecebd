"""Intervals and tests for means over samples that come in clusters.

Conversations of one thread share their context, so their values are correlated: resampling single conversations takes
them for independent and gives intervals that are too narrow. Here whole clusters are drawn with replacement (the
cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8), and the statistic
is the mean over the samples drawn. With S_c the sum and m_c the size of cluster c and w_c how often it was drawn, that
is sum_c w_c S_c / sum_c w_c m_c: resampling costs one multinomial draw and two dot products, whatever the sample size.

The number of clusters C is the sample size, and all of this rests on C being large. On simulated data (normal effects
of clusters of 1 to 7, intraclass correlation 0.8; 1,000 data sets, standard error 0.7 points) 95 % intervals covered
the mean in 88, 93, 93 and 94 % for C = 10, 20, 60 and 200, and a test at 5 % rejected a true null in 10, 8, 5 and 5 %.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_BLOCK = 4_000_000  # weights held in memory at a time


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    mean: float
    low: float
    high: float
    p_value: float
    effect_size: float


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with a percentile interval from resampling `clusters` (one label per value) with replacement.

    The interval runs from the (1 - level)/2 to the (1 + level)/2 quantile of the resampled means; unlike BCa it needs
    no jackknife and behaves with few distinct values, at the price of ignoring skew. The order of the samples does not
    matter. One cluster carries no information on the spread between clusters: low and high are then nan.
    """
    sums, sizes = _cluster_totals(values, clusters)
    mean, low, high, _ = _interval(sums, sizes, n_resamples, level, seed)
    return Interval(mean, low, high)


def paired_cluster_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Is run `a` better than run `b` on the same samples? The mean of a - b, with interval, p-value and effect size.

    Interval: percentile, as in `cluster_bootstrap`, of the differences. p-value, two-sided, for a mean difference of
    zero: the resampled means t are centred on zero by taking the observed mean d off, and

        p = (1 + #{|t - d| >= |d|}) / (n_resamples + 1)

    (Davison and Hinkley, 1997, section 4.4, on centring; the +1 counts the observed sample itself, so that p is never
    0). Effect size: d / standard deviation (n - 1) of the cluster means of a - b, a paired Cohen's d whose unit is the
    cluster; 0 where all differences are 0, infinite where all cluster means equal the same other number. With one
    cluster interval, p-value and effect size are nan.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a and b must hold the same samples, found shapes {first.shape} and {second.shape}")
    sums, sizes = _cluster_totals(first - second, clusters)
    mean, low, high, resampled = _interval(sums, sizes, n_resamples, level, seed)
    if len(sums) < 2:
        return PairedDifference(mean, low, high, math.nan, math.nan)
    # A hair of slack: resampled means that tie with the observed one must count whichever way they were rounded.
    extreme = np.abs(resampled - mean) >= abs(mean) * (1 - 1e-9)
    p_value = float((1 + extreme.sum()) / (n_resamples + 1))
    cluster_means = sums / sizes
    spread = float(cluster_means.std(ddof=1))
    if spread > 1e-12 * float(np.abs(cluster_means).max()):
        effect_size = mean / spread
    else:
        effect_size = math.copysign(math.inf, mean) if mean else 0.0
    return PairedDifference(mean, low, high, p_value, effect_size)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjustment: p-values that may be held against the level of the whole family, in input order.

    With p_(1) <= ... <= p_(m): adjusted_(i) = max_{j<=i} min(1, (m - j + 1) p_(j)) (Holm, Scandinavian Journal of
    Statistics 6, 1979). It controls the family-wise error rate under any dependence between the tests. ValueError for
    values outside [0, 1], nan among them: a test that could not be made is no member of the family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a flat list of numbers between 0 and 1")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def _cluster_totals(values: ArrayLike, clusters: Sequence[object] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each cluster, clusters in sorted order."""
    numbers = np.asarray(values, dtype=np.float64)
    labels = np.asarray(clusters)
    if numbers.ndim != 1 or labels.shape != numbers.shape:
        raise ValueError(f"one cluster per value: found shapes {numbers.shape} and {labels.shape}")
    if not len(numbers):
        raise ValueError("no values to resample")
    if not np.isfinite(numbers).all():
        raise ValueError("values must be finite; leave out the samples in which a metric is not defined")
    _, member = np.unique(labels, return_inverse=True)
    return np.bincount(member, weights=numbers), np.bincount(member).astype(np.float64)


def _interval(
    sums: np.ndarray, sizes: np.ndarray, n_resamples: int, level: float, seed: int
) -> tuple[float, float, float, np.ndarray]:
    """Mean, ends of the percentile interval, and the resampled means."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, found {n_resamples}")
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return mean, math.nan, math.nan, np.full(n_resamples, mean)
    resampled = np.concatenate([(w @ sums) / (w @ sizes) for w in _weights(len(sums), n_resamples, seed)])
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high), resampled


def _weights(n_clusters: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn in each resample, [rows, n_clusters], in blocks that fit into memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n_clusters)
    for start in range(0, n_resamples, rows):
        size = min(rows, n_resamples - start)
        yield generator.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=size).astype(np.float64)
