"""Training seeds and conversations as crossed random factors: by hand, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from convrec_r1.evaluate.statistics import (
    cluster_bootstrap,
    crossed_difference,
    crossed_mean,
    paired_cluster_bootstrap,
)

pytestmark = pytest.mark.long


def systems(generator, seeds, *, clusters=200, between_seeds=0.0, interaction=0.5, paired=True, difference=0.0):
    """Two systems' values, [S, M] each, and the clusters, of 1 to 7 samples.

    Each cluster prefers one of the two by its own amount, of standard deviation 1; `between_seeds`: how far seeds move
    the difference of means, in units of how far the clusters do; `interaction`: how far a cluster's preference varies
    from seed to seed. Paired seeds share an effect that is far larger than both.
    """
    sizes = generator.integers(1, 8, clusters)
    labels = np.repeat(np.arange(clusters), sizes)
    shared = generator.normal(size=clusters)[labels]
    common = generator.normal(size=(seeds, 1)) * paired
    of_seed = between_seeds * np.sqrt((sizes**2).sum()) / sizes.sum() * np.sqrt(seeds / 2)
    found = []
    for sign in (0.5, -0.5):
        cell = generator.normal(size=(seeds, clusters))[:, labels] * interaction / math.sqrt(2)
        run = generator.normal(size=(seeds, 1)) * of_seed
        found.append(common + sign * (shared + difference) + run + cell)
    return found[0], found[1], labels


def test_by_hand():
    # Differences of the means: seed 1: (1 + 1 + 4) / 3 = 2, seed 2: (3 + 3 + 0) / 3 = 2, seed 3: (2 + 2 + 11) / 3 = 5.
    # Mean 3, V2 = 3 / 3 = 1. Averaged over seeds: 2, 2 in cluster x, 5 in y. Two clusters of two and one samples, drawn
    # twice: xx -> 2 (1/4), xy -> 3 (1/2), yy -> 5 (1/4); mean 13/4, variance 47/4 - 169/16 = 19/16, V1 = 2 * 19/16.
    a, b = np.array([[1, 1, 4], [3, 3, 0], [2, 2, 11]]) + 7.0, np.full((3, 3), 7.0)
    found = crossed_difference(a, b, ["x", "x", "y"], paired_seeds=True, n_resamples=200_000)
    v1, v2 = 19 / 8, 1.0
    assert found.mean == 3.0
    assert found.seed_variance == pytest.approx(v2)
    assert found.conversation_variance == pytest.approx(v1, rel=0.01)  # Monte Carlo: about 0.3 %
    df = (v1 + v2) ** 2 / (v1**2 / 1 + v2**2 / 2)
    assert found.df == pytest.approx(df, rel=0.01)
    # The rest follows from these to the last digit: t = 3 / sqrt(v1 + v2), and 3 +- t_df(0.975) sqrt(v1 + v2).
    error = math.sqrt(found.conversation_variance + found.seed_variance)
    assert found.p_value == pytest.approx(2 * stats.t(found.df).sf(3 / error))
    assert (found.low, found.high) == pytest.approx(stats.t(found.df, loc=3, scale=error).interval(0.95))
    # Cluster means 2 and 5: standard deviation 3 / sqrt(2).
    assert found.effect_size == pytest.approx(math.sqrt(2))
    # b is constant, so V2 is a's alone and b adds no degree of freedom.
    assert crossed_difference(a, b, ["x", "x", "y"], paired_seeds=False, n_resamples=200_000) == pytest.approx(found)
    # One system alone: the same variance around another mean. Runs' means 9, 9 and 12.
    alone = crossed_mean(a, ["x", "x", "y"], n_resamples=200_000)
    assert alone == pytest.approx((10.0, found.low + 7, found.high + 7, math.sqrt(3)))


def test_without_variance_between_conversations_it_is_a_t_test_over_seeds():
    generator = np.random.default_rng(4)
    first, second, third = generator.normal(0.3, 0.1, 5), generator.normal(0.2, 0.2, 5), generator.normal(0.2, 0.2, 3)
    labels = np.repeat(np.arange(12), 2)
    rows = [np.repeat(means[:, None], 24, axis=1) for means in (first, second, third)]

    paired = crossed_difference(rows[0], rows[1], labels, paired_seeds=True)
    reference = stats.ttest_rel(first, second)
    assert paired.conversation_variance == 0.0
    assert (paired.p_value, paired.df) == pytest.approx((reference.pvalue, 4))
    assert (paired.low, paired.high) == pytest.approx(tuple(reference.confidence_interval()))

    apart = crossed_difference(rows[0], rows[2], labels, paired_seeds=False)
    reference = stats.ttest_ind(first, third, equal_var=False)
    assert (apart.p_value, apart.df) == pytest.approx((reference.pvalue, reference.df))
    assert (apart.low, apart.high) == pytest.approx(tuple(reference.confidence_interval()))

    alone = crossed_mean(rows[0], labels)
    reference = stats.ttest_1samp(first, 0.0).confidence_interval()
    assert alone == pytest.approx((first.mean(), reference.low, reference.high, first.std(ddof=1)))


def test_without_variance_between_seeds_it_is_a_t_test_over_clusters():
    differences = np.random.default_rng(5).exponential(size=60)
    a, b = np.tile(differences, (3, 1)), np.zeros((3, 60))
    reference = stats.ttest_1samp(differences, 0.8)
    for paired in (True, False):
        found = crossed_difference(a - 0.8, b, range(60), paired_seeds=paired, n_resamples=100_000)
        assert (found.seed_variance, found.df) == (0.0, pytest.approx(59))
        assert found.p_value == pytest.approx(reference.pvalue, abs=0.01)
        interval = np.array(reference.confidence_interval()) - 0.8
        assert (found.low, found.high) == pytest.approx(tuple(interval), abs=0.003)
    # And the interval is that of the percentile bootstrap, but for t against normal quantiles and skew.
    theirs = cluster_bootstrap(differences, range(60))
    ours = crossed_mean(a, range(60))
    assert (ours.high - ours.low) / (theirs.high - theirs.low) == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("paired", [True, False])
def test_order_changes_nothing_and_swapping_systems_changes_signs(paired):
    generator = np.random.default_rng(6)
    a, b, labels = systems(generator, 4, clusters=30, between_seeds=1.0, paired=paired, difference=0.3)
    if not paired:
        b = b[:3]
    found = crossed_difference(a, b, labels, paired_seeds=paired)
    samples, seeds = generator.permutation(len(labels)), np.array([2, 0, 3, 1])
    others = seeds if paired else np.array([2, 0, 1])
    shuffled = crossed_difference(a[seeds][:, samples], b[others][:, samples], labels[samples], paired_seeds=paired)
    assert shuffled == pytest.approx(found)
    swapped = crossed_difference(b, a, labels, paired_seeds=paired)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert swapped.effect_size == pytest.approx(-found.effect_size)
    assert swapped[5:] == pytest.approx(found[5:])
    assert swapped.p_value == pytest.approx(found.p_value)
    assert crossed_mean(a[seeds][:, samples], labels[samples]) == pytest.approx(crossed_mean(a, labels))
    # In other units, the same answer.
    scaled = crossed_difference(a * 1e-6, b * 1e-6, labels, paired_seeds=paired)
    assert (scaled.p_value, scaled.df, scaled.effect_size) == pytest.approx(
        (found.p_value, found.df, found.effect_size)
    )
    assert (scaled.mean, scaled.low, scaled.high) == pytest.approx(tuple(1e-6 * np.array(found[:3])))


def test_pairing_takes_out_what_seeds_share():
    """The systems differ by 0.5; a seed moves both by far more. Paired, that is seen; unpaired, it drowns."""
    a, b, labels = systems(np.random.default_rng(8), 5, difference=0.5)
    paired = crossed_difference(a, b, labels, paired_seeds=True)
    apart = crossed_difference(a, b, labels, paired_seeds=False)
    assert paired.p_value < 0.001 < 0.1 < apart.p_value
    assert paired.mean == apart.mean
    assert paired.conversation_variance == apart.conversation_variance


def rejected(test, seeds, paired, **options):
    """Share of 300 data sets without a difference in which `test`, at 5 %, finds one."""
    found = 0
    for number in range(300):
        a, b, labels = systems(np.random.default_rng([seeds, number]), seeds, paired=paired, **options)
        found += test(a, b, labels, n_resamples=200, seed=number).p_value <= 0.05
    return found / 300


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [3, 5])
def test_a_true_null_is_rejected_as_often_as_announced(seeds, paired):
    """Intervals and p-values are of one t, so this is the coverage of the intervals too. Standard error 1.4 points."""

    def crossed(a, b, labels, **resampling):
        result = crossed_difference(a, b, labels, paired_seeds=paired, **resampling)
        assert (result.p_value <= 0.05) == (not result.low <= 0 <= result.high)
        return result

    # Seeds move the difference twice as far as conversations do: 7 % (S = 3) and 5.5 % (S = 5) are expected. Normal
    # quantiles in place of t's, or variances not divided by S, are far outside.
    assert 0.03 <= rejected(crossed, seeds, paired, between_seeds=2.0) <= 0.105
    # Seeds do not move it: the interaction, counted twice, makes the test conservative, but not by much.
    assert 0.02 <= rejected(crossed, seeds, paired, between_seeds=0.0) <= 0.08


def test_the_cluster_bootstrap_alone_takes_what_seeds_did_for_what_training_did():
    def of_one_seed(a, b, labels, **resampling):
        return paired_cluster_bootstrap(a[0], b[0], labels, **resampling)

    def of_means(a, b, labels, **resampling):
        return paired_cluster_bootstrap(a.mean(axis=0), b.mean(axis=0), labels, **resampling)

    for seeds in (3, 5):
        assert rejected(of_means, seeds, paired=True, between_seeds=2.0) >= 0.25
    assert rejected(of_one_seed, 3, paired=True, between_seeds=2.0) >= 0.45
    assert 0.02 <= rejected(of_means, 3, paired=True, between_seeds=0.0) <= 0.09


def test_the_interval_of_one_system_is_the_one_of_paired_differences():
    """So what simulation says of the one holds for the other."""
    a, b, labels = systems(np.random.default_rng(9), 4, between_seeds=1.0)
    found = crossed_difference(a, b, labels, paired_seeds=True)
    assert crossed_mean(a - b, labels) == pytest.approx((*found[:3], math.sqrt(4 * found.seed_variance)))


def test_one_run_says_nothing_of_seeds_and_is_no_error():
    a, b = np.array([[1.0, 2.0, 6.0]]), np.zeros((3, 3))
    for found in (
        crossed_difference(a, b, [1, 2, 3], paired_seeds=False),
        crossed_difference(b, a, [1, 2, 3], paired_seeds=False),
        crossed_difference(a, b[:1], [1, 2, 3], paired_seeds=True),
    ):
        assert abs(found.mean) == 3.0
        assert abs(found.effect_size) == pytest.approx(3 / math.sqrt(7))
        assert found.conversation_variance > 0
        assert all(map(math.isnan, (found.low, found.high, found.p_value, found.df, found.seed_variance)))
    mean, low, high, seed_std = crossed_mean(a, [1, 2, 3])
    assert mean == 3.0
    assert all(map(math.isnan, (low, high, seed_std)))


def test_one_cluster_says_nothing_of_conversations():
    found = crossed_difference([[1.0, 2.0], [2.0, 3.0]], np.zeros((2, 2)), ["x", "x"], paired_seeds=True)
    assert found.mean == 2.0
    assert found.seed_variance == pytest.approx(0.25)
    assert all(map(math.isnan, (*found[1:6], found.conversation_variance)))
    mean, low, high, seed_std = crossed_mean([[1.0, 2.0], [2.0, 3.0]], ["x", "x"])
    assert (mean, seed_std) == (2.0, pytest.approx(math.sqrt(0.5)))
    assert math.isnan(low)
    assert math.isnan(high)


def test_no_variance_at_all():
    ones = np.ones((3, 4))
    same = crossed_difference(0.1 * ones, 0.1 * ones[:2], range(4), paired_seeds=False)
    assert same == (0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    # 0.1 * 3 / 3 is not 0.1: rounding must not pass for a difference between seeds or conversations.
    shifted = crossed_difference(0.3 * ones, 0.1 * ones, range(4), paired_seeds=True)
    assert shifted[:3] == pytest.approx((0.2, 0.2, 0.2))
    assert shifted[3:] == (0.0, math.inf, 2.0, 0.0, 0.0)
    assert crossed_mean(0.1 * ones, range(4)) == pytest.approx((0.1, 0.1, 0.1, 0.0))


@pytest.mark.parametrize(
    ("a", "b", "clusters", "options", "message"),
    [
        ([1.0, 2.0], [[1.0, 2.0]], [1, 2], {}, r"a must be \[runs, samples\].*\(2,\)"),
        ([[1.0, 2.0]], [], [1, 2], {}, r"b must be \[runs, samples\]"),
        ([[1.0, 2.0]], [[1.0, 2.0, 3.0]], [1, 2], {}, "same samples"),
        ([[1.0, 2.0]] * 2, [[1.0, 2.0]] * 3, [1, 2], {}, "as many runs of a as of b, found 2 and 3"),
        ([[1.0, math.nan]], [[1.0, 2.0]], [1, 2], {}, "finite"),
        ([[1.0, 2.0]], [[1.0, 2.0]], [1], {}, "one cluster per value"),
        (np.zeros((2, 0)), np.zeros((2, 0)), [], {}, "no values"),
        ([[1.0, 2.0]], [[1.0, 2.0]], [1, 2], {"level": 95}, "level"),
        ([[1.0, 2.0]], [[1.0, 2.0]], [1, 2], {"n_resamples": 1}, "n_resamples"),
    ],
)
def test_input_that_cannot_be_right_is_refused(a, b, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        crossed_difference(a, b, clusters, paired_seeds=True, **options)


def test_one_systems_values_are_checked_too():
    with pytest.raises(ValueError, match=r"values must be \[runs, samples\]"):
        crossed_mean([1.0, 2.0], [1, 2])
