"""Cluster bootstrap, paired test and Holm's correction: by hand, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from convrec_r1.evaluate import statistics
from convrec_r1.evaluate.statistics import cluster_bootstrap, holm, paired_cluster_bootstrap


def clustered(generator, n_clusters, *, between=1.0, within=0.5, mean=0.0):
    """Values that share an effect within their cluster; 1 to 7 samples a cluster."""
    sizes = generator.integers(1, 8, n_clusters)
    labels = np.repeat(np.arange(n_clusters), sizes)
    effects = generator.normal(mean, between, n_clusters)
    return effects[labels] + generator.normal(0.0, within, len(labels)), labels


def test_the_mean_is_over_samples_not_over_clusters():
    # (1 + 1 + 1 + 5) / 4, not (1 + 5) / 2
    assert cluster_bootstrap([1, 1, 1, 5], ["a", "a", "a", "b"]).mean == 2.0


def test_two_clusters_by_hand():
    # Draws of two from {a: 0 0, b: 6}: aa -> 0 (1/4), ab -> 6 / 3 = 2 (1/2), bb -> 6 (1/4). The quantiles .025 and
    # .975 are 0 and 6; at level 0.4 those at .3 and .7 both lie in the middle half: 2.
    values, clusters = [0, 0, 6], ["a", "a", "b"]
    assert cluster_bootstrap(values, clusters) == (2.0, 0.0, 6.0)
    assert cluster_bootstrap(values, clusters, level=0.4) == (2.0, 2.0, 2.0)


def test_clusters_of_one_agree_with_scipy():
    values = np.random.default_rng(0).exponential(size=150)
    ours = cluster_bootstrap(values, np.arange(150), n_resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.006)  # the Monte-Carlo error of a quantile is about 0.002
    assert ours.high == pytest.approx(theirs.high, abs=0.006)


def test_same_seed_same_interval_whatever_the_order_and_the_block(monkeypatch):
    generator = np.random.default_rng(3)
    values, labels = clustered(generator, 40)
    first = cluster_bootstrap(values, labels, seed=5)
    shuffled = generator.permutation(len(values))
    assert cluster_bootstrap(values[shuffled], labels[shuffled], seed=5) == pytest.approx(first)
    monkeypatch.setattr(statistics, "_BLOCK", 1000)  # 25 resamples at a time
    assert cluster_bootstrap(values, labels, seed=5) == pytest.approx(first, rel=1e-12)
    assert cluster_bootstrap(values, labels, seed=6) != first


def test_coverage_of_the_interval():
    """95 % intervals on clustered data hold the true mean about 95 % of the time; taking samples for independent, they
    do not. 400 data sets of 60 clusters: the standard error of the coverage is about 1.1 points."""
    generator = np.random.default_rng(7)
    by_cluster = by_sample = 0
    for seed in range(400):
        values, labels = clustered(generator, 60)
        low, high = cluster_bootstrap(values, labels, n_resamples=400, seed=seed)[1:]
        by_cluster += low <= 0.0 <= high
        low, high = cluster_bootstrap(values, np.arange(len(values)), n_resamples=400, seed=seed)[1:]
        by_sample += low <= 0.0 <= high
    assert 0.91 <= by_cluster / 400 <= 0.98
    assert by_sample / 400 <= 0.80


def test_p_values_are_uniform_without_a_difference():
    """Two runs of equal quality, 600 times: p-values as good as uniform (Kolmogorov-Smirnov), about 5 % below 0.05."""
    generator = np.random.default_rng(11)
    p_values = []
    for seed in range(600):
        values, labels = clustered(generator, 80)
        other = values + clustered_noise(generator, labels)
        p_values.append(paired_cluster_bootstrap(values, other, labels, n_resamples=400, seed=seed).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.025 <= np.mean(np.array(p_values) <= 0.05) <= 0.085


def clustered_noise(generator, labels):
    return generator.normal(size=labels.max() + 1)[labels] * 0.3 + generator.normal(size=len(labels)) * 0.3


def test_a_real_difference_is_found_where_the_runs_vary_far_more_than_they_differ():
    generator = np.random.default_rng(2)
    values, labels = clustered(generator, 100)
    better = values + 0.1 + generator.normal(0, 0.1, len(values))
    result = paired_cluster_bootstrap(better, values, labels)
    assert result.p_value == pytest.approx(1 / 2001)  # no resample as extreme: the least that 2,000 can give
    assert 0 < result.low < result.mean < result.high
    mirrored = paired_cluster_bootstrap(values, better, labels)
    assert mirrored.p_value == result.p_value
    assert mirrored.mean == pytest.approx(-result.mean)
    assert (mirrored.low, mirrored.high) == pytest.approx((-result.high, -result.low))


def test_effect_size_by_hand():
    # Differences a: 1, 1; b: 4; c: 1, 3. Cluster means 1, 4, 2: standard deviation sqrt(7/3). Mean difference 10/5.
    result = paired_cluster_bootstrap([2, 2, 5, 2, 4], [1, 1, 1, 1, 1], ["a", "a", "b", "c", "c"])
    assert result.mean == 2.0
    assert result.effect_size == pytest.approx(2.0 / math.sqrt(7 / 3))


def test_runs_that_do_not_differ():
    same = paired_cluster_bootstrap([0.1, 0.7, 0.3], [0.1, 0.7, 0.3], [1, 2, 3])
    assert same == (0.0, 0.0, 0.0, 1.0, 0.0)
    shifted = paired_cluster_bootstrap([0.3, 0.9, 0.5], [0.1, 0.7, 0.3], [1, 2, 3], n_resamples=99)
    assert shifted.p_value == 0.01
    assert shifted.effect_size == math.inf


def test_one_cluster_has_a_mean_and_no_interval():
    mean, low, high = cluster_bootstrap([1.0, 3.0], ["a", "a"])
    assert mean == 2.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert all(map(math.isnan, paired_cluster_bootstrap([1.0, 3.0], [0.0, 0.0], ["a", "a"])[1:]))


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([], [], {}, "no values"),
        ([1.0, math.nan], [1, 2], {}, "finite"),
        ([1.0, 2.0], [1], {}, "one cluster per value"),
        ([1.0, 2.0], [1, 2], {"level": 95}, "level"),
        ([1.0, 2.0], [1, 2], {"n_resamples": 0}, "n_resamples"),
    ],
)
def test_input_that_cannot_be_right_is_refused(values, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, clusters, **options)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="same samples"):
        paired_cluster_bootstrap([1.0, 2.0], [1.0], [1, 2])


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04; the last may not fall below the one before: .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    # Sorted .01 .04 .5 .9 times 4 3 2 1: .04 .12 1 .9 -> 1
    assert holm([0.9, 0.01, 0.5, 0.04]) == pytest.approx([1.0, 0.04, 1.0, 0.12])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.03]) == pytest.approx([0.03])
    assert holm([]).tolist() == []


def test_holm_is_the_closed_test_over_bonferroni():
    """What Holm's procedure is a shortcut for: a hypothesis is rejected if Bonferroni rejects every set it belongs to,
    so its adjusted p-value is the largest of |set| * smallest p over those sets (Marcus, Peritz and Gabriel, 1976)."""
    generator = np.random.default_rng(13)
    for size in (1, 2, 3, 6):
        p = np.round(generator.random(size) ** 3, 2)  # small ones, large ones and ties
        sets = [[i for i in range(size) if code >> i & 1] for code in range(1, 2**size)]
        expected = [max(min(1.0, len(s) * p[s].min()) for s in sets if i in s) for i in range(size)]
        assert holm(p) == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [[0.1, 1.5], [-0.1], [math.nan]])
def test_holm_refuses_what_is_no_p_value(p_values):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(p_values)
