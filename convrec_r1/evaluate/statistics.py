"""Intervals and tests for means over samples that come in clusters.

Conversations of one thread share their context, so their values are correlated: resampling single conversations takes
them for independent and gives intervals that are too narrow. Here whole clusters are drawn with replacement (the
cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8), and the statistic
is the mean over the samples drawn. With S_c the sum and m_c the size of cluster c and w_c how often it was drawn, that
is sum_c w_c S_c / sum_c w_c m_c: resampling costs one multinomial draw and two dot products, whatever the sample size.

The number of clusters C is the sample size, and all of this rests on C being large. On simulated data (normal effects
of clusters of 1 to 7, intraclass correlation 0.8; 1,000 data sets, standard error 0.7 points) 95 % intervals covered
the mean in 88, 93, 93 and 94 % for C = 10, 20, 60 and 200, and a test at 5 % rejected a true null in 10, 8, 5 and 5 %.

That compares two trained policies. Two *ways of training* differ by less and vary by more: another seed gives another
policy. With S runs of each, all evaluated on the same conversations, seeds and conversations are crossed random factors,

    d_sc = mu + a_s + b_c + e_sc,    Var(mean) = Var(a) / S + Var(b) / C + Var(e) / (S C),

and `crossed_mean` and `crossed_difference` say what can be said of mu, for other seeds and other conversations than
those at hand:

    V1  conversations: variance of the cluster bootstrap of the values averaged over seeds, times C / (C - 1), by which
        a bootstrap falls short                                              expectation Var(b) / C + Var(e) / (S C)
    V2  seeds: sample variance (n - 1) of the S means over conversations, over S       Var(a) / S + Var(e) / (S C)

The interval is t's, with the standard error sqrt(V1 + V2) and the degrees of freedom (V1 + V2)^2 / (V1^2 / (C - 1) +
V2^2 / (S - 1)) (Satterthwaite, Biometrics Bulletin 2, 1946). The sum counts the interaction e twice and is a little too
wide where e is large (resampling both factors at once would count it three times: Owen, The pigeonhole bootstrap, Annals
of Applied Statistics 1(2), 2007). It is left in: without it, simulated intervals were narrower by about a tenth at most,
and tests with three seeds, which reject a little too often, did so by another half point.

How often a test at 5 % rejected a true null, in % (`python experiments/simulate_seeds.py`: 200 clusters of 1 to 7
samples, 1,000 data sets, standard error 0.7 points at 5 %). Columns: standard deviation that seeds leave in the mean
difference, in units of what conversations leave in it; below, that of e in units of that of b.

                                            0           0.5            1             2
                                         0     1      0     1      0     1      0     1
    S = 2  paired seeds                5.3   3.2    4.3   3.4    8.4   5.7   11.8   7.9
           unpaired                    4.8   1.9    4.3   3.1    4.7   3.2    7.3   5.3
    S = 3  paired seeds                5.6   2.8    5.1   2.2    6.6   4.9    7.6   7.2
           unpaired                    6.2   3.1    4.7   3.4    4.2   4.5    4.5   4.8
           cluster bootstrap of
           the values of one seed      5.5   5.9   15.4  11.0   35.1  20.6   58.4  43.6
           the means over seeds        5.5   5.6    7.9   7.6   18.4  14.3   36.4  32.4
    S = 5  paired seeds                4.9   3.6    4.6   4.5    4.3   3.9    7.2   5.8
           unpaired                    6.1   2.9    4.3   3.4    4.2   4.1    6.9   4.2
           cluster bootstrap of
           the values of one seed      4.7   4.5   18.7  12.3   40.7  29.9   65.9  54.8
           the means over seeds        4.7   5.9    8.9   9.7   15.9  14.7   37.9  35.5

Two seeds are too few for a claim at 5 % where seeds vary more than conversations do; three do, with a grain of salt.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

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


class CrossedInterval(NamedTuple):
    mean: float
    low: float
    high: float
    seed_std: float


class CrossedDifference(NamedTuple):
    mean: float
    low: float
    high: float
    p_value: float
    effect_size: float
    df: float
    conversation_variance: float
    seed_variance: float


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
    scale = float(max(np.abs(first).max(), np.abs(second).max()))
    mean, low, high, resampled = _interval(sums, sizes, n_resamples, level, seed)
    if len(sums) < 2:
        return PairedDifference(mean, low, high, math.nan, math.nan)
    # A hair of slack: resampled means that tie with the observed one must count whichever way they were rounded.
    extreme = np.abs(resampled - mean) >= abs(mean) * (1 - 1e-9)
    p_value = float((1 + extreme.sum()) / (n_resamples + 1))
    return PairedDifference(mean, low, high, p_value, _effect_size(mean, sums / sizes, scale))


def crossed_mean(
    values: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> CrossedInterval:
    """Mean of one system over training seeds and conversations, with an interval that allows for both being samples.

    `values` [S, M]: one row a training run, one column a conversation, the same for all; `clusters` [M]. The interval
    (this module's docstring) is for the mean over seeds and conversations of which these are some; `seed_std` is the
    standard deviation (n - 1) between the runs' means. The order of neither rows nor columns matters. One seed carries
    no information on seeds: low, high and seed_std are then nan, and so are low and high with one cluster. ValueError
    as in `cluster_bootstrap`, for values that are not [S, M] and for less than 2 resamples.
    """
    runs = _runs(values, "values")
    scale = float(np.abs(runs).max(initial=0.0))
    mean, conversations, _ = _conversation_part(runs.mean(axis=0), clusters, scale, n_resamples, level, seed)
    seeds = _seed_part(runs.mean(axis=1), scale)
    low, high, _, _ = _t_interval(mean, [conversations, seeds], level)
    return CrossedInterval(mean, low, high, math.sqrt(seeds.variance * len(runs)))


def crossed_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    *,
    paired_seeds: bool,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> CrossedDifference:
    """Does training as `a` give better policies than training as `b`, whatever the seed? The mean of a - b.

    `a` [S_a, M] and `b` [S_b, M]: one row a training run, one column a conversation, the same for all runs of both;
    `clusters` [M]. Where `paired_seeds`, row s of a and row s of b share what a seed decides (warm start, order of the
    data), S_a = S_b, and V2 is of the S differences; otherwise V2 is the sum of the two systems' own, var_a / S_a +
    var_b / S_b, each with its own degrees of freedom, as in Welch's test. `conversation_variance` is V1,
    `seed_variance` V2, both in squared units of the metric; `df` are Satterthwaite's degrees of freedom. p-value:
    two-sided, of t = mean / sqrt(V1 + V2), for a true difference of zero. Without variance between conversations this
    is scipy's ttest_1samp of the S differences, or ttest_ind(equal_var=False) of the runs' means.

    Effect size: mean / standard deviation (n - 1) of the cluster means of a - b averaged over seeds, as in
    `paired_cluster_bootstrap`, with its values for no spread. Its unit is what clusters differ by; averaging over more
    seeds takes noise out of that, so effect sizes compare only at equal numbers of seeds.

    One run in either: low, high, p_value, df and seed_variance are nan, for the difference may be the seed's. One
    cluster: likewise, and conversation_variance and effect_size are nan. No variance at all: low and high equal the
    mean, and p_value is 1 for no difference and 0 for one, df the least of the parts'. Swapping a and b changes signs
    only. ValueError as in `crossed_mean`, for different numbers of conversations, and for pairs without a partner.
    """
    first, second = _runs(a, "a"), _runs(b, "b")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a and b must hold the same samples, found shapes {first.shape} and {second.shape}")
    if paired_seeds and len(first) != len(second):
        raise ValueError(f"paired seeds need as many runs of a as of b, found {len(first)} and {len(second)}")
    scale = float(max(np.abs(first).max(initial=0.0), np.abs(second).max(initial=0.0)))
    difference = first.mean(axis=0) - second.mean(axis=0)
    mean, conversations, cluster_means = _conversation_part(difference, clusters, scale, n_resamples, level, seed)
    if paired_seeds:
        seeds = [_seed_part((first - second).mean(axis=1), scale)]
    else:
        seeds = [_seed_part(first.mean(axis=1), scale), _seed_part(second.mean(axis=1), scale)]
    low, high, p_value, df = _t_interval(mean, [conversations, *seeds], level)
    effect_size = _effect_size(mean, cluster_means, scale) if len(cluster_means) > 1 else math.nan
    seed_variance = sum(part.variance for part in seeds)
    return CrossedDifference(mean, low, high, p_value, effect_size, df, conversations.variance, seed_variance)


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


class _Part(NamedTuple):
    """An estimate of a part of the variance of a mean, and the degrees of freedom it rests on. nan: no estimate."""

    variance: float
    df: int


def _runs(values: ArrayLike, name: str) -> np.ndarray:
    """Values of several runs as float [S, M]."""
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 2 or not len(runs):
        raise ValueError(f"{name} must be [runs, samples] with at least one run, found shape {runs.shape}")
    if not np.isfinite(runs).all():
        raise ValueError("values must be finite; leave out the samples in which a metric is not defined")
    return runs


def _conversation_part(
    values: np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    scale: float,
    n_resamples: int,
    level: float,
    seed: int,
) -> tuple[float, _Part, np.ndarray]:
    """Mean, V1 and cluster means of values [M] that are averaged over seeds."""
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2 for a variance, found {n_resamples}")
    sums, sizes = _cluster_totals(values, clusters)
    mean, _, _, resampled = _interval(sums, sizes, n_resamples, level, seed)
    n = len(sums)
    variance = _unless_rounding(float(resampled.std(ddof=1)), scale) ** 2 * n / (n - 1) if n > 1 else math.nan
    return _unless_rounding(mean, scale), _Part(variance, n - 1), sums / sizes


def _seed_part(means: np.ndarray, scale: float) -> _Part:
    """V2 from the mean of each run [S]."""
    n = len(means)
    return _Part(_unless_rounding(float(means.std(ddof=1)), scale) ** 2 / n if n > 1 else math.nan, n - 1)


def _unless_rounding(value: float, scale: float) -> float:
    """0 for what rounding alone may have made of values of size `scale`: a mean of 0, a spread of equal ones."""
    return value if abs(value) > 1e-12 * scale else 0.0


def _t_interval(mean: float, parts: Sequence[_Part], level: float) -> tuple[float, float, float, float]:
    """low, high, two-sided p-value and degrees of freedom of a mean whose variance is the sum of `parts`."""
    total = sum(part.variance for part in parts)
    if math.isnan(total):
        return math.nan, math.nan, math.nan, math.nan
    if not total:
        return mean, mean, float(mean == 0.0), float(min(part.df for part in parts))
    # Shares of the total, not variances, are squared: those of a metric near 0 would underflow.
    df = 1 / sum((part.variance / total) ** 2 / part.df for part in parts)
    error = math.sqrt(total)
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, df)), df


def _effect_size(mean: float, cluster_means: np.ndarray, scale: float) -> float:
    """Mean over the standard deviation between clusters; where that is 0, 0 or infinite. `scale` of the values."""
    mean, spread = _unless_rounding(mean, scale), _unless_rounding(float(cluster_means.std(ddof=1)), scale)
    if spread or not mean:
        return mean / spread if mean else 0.0
    return math.copysign(math.inf, mean)


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
