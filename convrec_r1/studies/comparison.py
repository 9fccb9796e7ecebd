"""Means with intervals and differences with tests, for all systems of a study (formulas: evaluate/statistics.py)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convrec_r1.evaluate.statistics import (
    cluster_bootstrap,
    crossed_difference,
    crossed_mean,
    holm,
    paired_cluster_bootstrap,
)
from convrec_r1.studies.systems import Study, System, over_seeds


@dataclass(frozen=True)
class Mean:
    """Mean of one system on one metric. NaN: not defined."""

    system: str
    metric: str
    mean: float
    low: float = math.nan
    high: float = math.nan
    """Interval for these policies on other conversations (cluster bootstrap)."""
    crossed_low: float = math.nan
    crossed_high: float = math.nan
    """Interval for other trainings and other conversations; NaN with one seed."""
    seed_std: float = math.nan
    conversations: int = 0
    """Conversations in which the metric is defined for at least one seed."""
    per_seed: tuple[float, ...] = ()
    """Mean of each seed, in the order of the system's seeds."""


@dataclass
class Difference:
    """Difference of one system from the baseline on one metric. NaN: not defined."""

    system: str
    baseline: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    """For these policies on other conversations (paired cluster bootstrap)."""
    p_holm: float
    effect_size: float
    crossed_low: float
    crossed_high: float
    crossed_p: float
    """For other trainings and other conversations (`crossed_difference`). NaN with one seed."""
    crossed_p_holm: float
    """Adjusted by Holm over the systems compared on this metric."""
    df: float
    conversation_variance: float
    seed_variance: float
    paired_seeds: bool
    conversations: int
    seeds: tuple[int, ...]
    """Seeds of both systems. If one system was not trained: all seeds of the other."""
    per_seed: tuple[float, ...]
    """The difference of each of these seeds."""


@dataclass(frozen=True)
class Comparison:
    """Means and differences by metric, in the order of the study's systems."""

    metrics: tuple[str, ...]
    means: dict[str, tuple[Mean, ...]] = field(default_factory=dict)
    differences: dict[str, tuple[Difference, ...]] = field(default_factory=dict)
    level: float = 0.95
    resamples: int = 2000

    def mean(self, system: str, metric: str) -> Mean | None:
        return next((mean for mean in self.means.get(metric, ()) if mean.system == system), None)

    def difference(self, system: str, metric: str) -> Difference | None:
        return next((d for d in self.differences.get(metric, ()) if d.system == system), None)


def compare_systems(study: Study, *, level: float = 0.95, resamples: int = 2000) -> Comparison:
    """Return means, and differences from the baseline, on every metric of the study.

    A system without values of a metric has no entry. A metric of the whole set of lists (catalog/coverage) has means without
    intervals, and no differences.
    """
    options = {"level": level, "n_resamples": resamples}
    names = {name for s in study.systems for name in (*s.metrics, *(t for r in s.replicates for t in r.totals))}
    metrics = tuple(sorted(names, key=study.write.order))
    pairs = [(system, study.baseline) for system in study.systems if system is not study.baseline]
    means = {metric: means_on(study, metric, options) for metric in metrics}
    differences = {metric: differences_on(study, pairs, metric, options) for metric in metrics}
    return Comparison(metrics, means, differences, level, resamples)


def means_on(study: Study, metric: str, options: dict[str, Any]) -> tuple[Mean, ...]:
    """Return the mean of every system that defines `metric`. `options`: level and n_resamples of the statistics."""
    return tuple(m for system in study.systems if (m := _mean(system, metric, study.clusters, options)))


def differences_on(
    study: Study, pairs: Sequence[tuple[System, System]], metric: str, options: dict[str, Any]
) -> tuple[Difference, ...]:
    """Return the difference of each pair (system, baseline) that defines `metric`, with Holm over the pairs."""
    found = [d for a, b in pairs if (d := _difference(a, b, metric, study.clusters, options))]
    for name in ("p", "crossed_p"):
        # Holm's family holds only the tests with a p-value.
        tested = [d for d in found if not math.isnan(getattr(d, name))]
        for difference, p in zip(tested, holm([getattr(d, name) for d in tested]), strict=True):
            setattr(difference, f"{name}_holm", float(p))
    return tuple(found)


def _mean(system: System, metric: str, clusters: np.ndarray, options: dict[str, Any]) -> Mean | None:
    totals = tuple(r.totals[metric] for r in system.replicates if metric in r.totals)
    if len(totals) == len(system.replicates):
        spread = float(np.std(totals, ddof=1)) if len(totals) > 1 else math.nan
        size = len(clusters)
        return Mean(system.label, metric, float(np.mean(totals)), seed_std=spread, conversations=size, per_seed=totals)
    values = system.values(metric)
    averaged = over_seeds(values)
    defined = ~np.isnan(averaged)
    if not defined.any():
        return None
    found = cluster_bootstrap(averaged[defined], clusters[defined], **options)
    everywhere = ~np.isnan(values).any(0)
    low = high = spread = math.nan
    if everywhere.any() and len(values) > 1:
        _, low, high, spread = crossed_mean(values[:, everywhere], clusters[everywhere], **options)
    each = tuple(map(_nanmean, values))
    return Mean(system.label, metric, *found, low, high, spread, int(defined.sum()), each)


def _difference(
    system: System, baseline: System, metric: str, clusters: np.ndarray, options: dict[str, Any]
) -> Difference | None:
    a, b = system.values(metric), baseline.values(metric)
    first, second = over_seeds(a), over_seeds(b)
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return None
    found = paired_cluster_bootstrap(first[both], second[both], clusters[both], **options)
    seeds, each = _per_seed(system, baseline, a, b)
    a, b, paired = _in_pairs(system, baseline, a, b)
    everywhere = ~(np.isnan(a).any(0) | np.isnan(b).any(0))
    low = high = p = df = conversations = between = math.nan
    if everywhere.any() and not (system.fixed and baseline.fixed):
        a, b = a[:, everywhere], b[:, everywhere]
        crossed = crossed_difference(a, b, clusters[everywhere], paired_seeds=paired, **options)
        _, low, high, p, _, df, conversations, between = crossed
    return Difference(
        system=system.label,
        baseline=baseline.label,
        metric=metric,
        mean=found.mean,
        low=found.low,
        high=found.high,
        p=found.p_value,
        p_holm=math.nan,
        effect_size=found.effect_size,
        crossed_low=low,
        crossed_high=high,
        crossed_p=p,
        crossed_p_holm=math.nan,
        df=df,
        conversation_variance=conversations,
        seed_variance=between,
        paired_seeds=paired,
        conversations=int(both.sum()),
        seeds=seeds,
        per_seed=each,
    )


def _in_pairs(system: System, baseline: System, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return the values [S, M] of both systems, and whether their rows are pairs.

    Rows are pairs if both systems have the same seeds. The values of a system that was not trained do not depend on the seed,
    so they are repeated for each seed of the other.
    """
    if system.fixed or baseline.fixed:
        shape = np.broadcast_shapes(a.shape, b.shape)
        return np.broadcast_to(a, shape), np.broadcast_to(b, shape), True
    return a, b, system.seeds == baseline.seeds


def _per_seed(
    system: System, baseline: System, a: np.ndarray, b: np.ndarray
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the seeds of both systems, and the mean difference of each seed."""
    if system.fixed or baseline.fixed:
        return system.seeds or baseline.seeds, tuple(map(_nanmean, a - b))
    shared = tuple(seed for seed in system.seeds if seed in baseline.seeds)
    rows = [a[system.seeds.index(seed)] - b[baseline.seeds.index(seed)] for seed in shared]
    return shared, tuple(map(_nanmean, rows))


def _nanmean(row: np.ndarray) -> float:
    defined = row[~np.isnan(row)]
    return float(defined.mean()) if len(defined) else math.nan
