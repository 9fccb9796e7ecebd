"""The numbers of a comparison: means with intervals, and differences from the baseline with tests. Tables of plain
records; how they were computed is said in the report, under Methods."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from convrec_r1.evaluate.labels import metric_order
from convrec_r1.evaluate.statistics import (
    cluster_bootstrap,
    crossed_difference,
    crossed_mean,
    holm,
    paired_cluster_bootstrap,
)
from convrec_r1.studies.study import Study, System

COVERAGE = "catalog/coverage"


@dataclass(frozen=True)
class Mean:
    """One system on one metric. nan: a number that does not exist."""

    system: str
    metric: str
    mean: float
    low: float
    high: float
    """Interval for the policies at hand on other conversations (cluster bootstrap)."""
    crossed_low: float
    crossed_high: float
    """Interval for other trainings and other conversations; nan with one seed."""
    seed_std: float
    per_seed: tuple[float, ...]
    """Mean of each seed, in the order of the system's seeds."""
    conversations: int
    """In which the metric is defined, with at least one seed."""


@dataclass
class Difference:
    """One system against the baseline on one metric, system minus baseline."""

    system: str
    baseline: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    """These policies, other conversations: paired cluster bootstrap."""
    effect_size: float
    crossed_low: float
    crossed_high: float
    crossed_p: float
    """Other trainings and other conversations: seeds and conversations crossed. nan with one seed."""
    df: float
    conversation_variance: float
    seed_variance: float
    paired_seeds: bool
    per_seed: tuple[float, ...]
    """Each seed's own difference, of those that both have (all, where one of the two was not trained)."""
    seeds: tuple[int, ...]
    """To `per_seed`; none where neither was trained."""
    conversations: int
    p_holm: float = math.nan
    crossed_p_holm: float = math.nan
    """After Holm, over the systems that are held against the baseline on this metric."""


@dataclass(frozen=True)
class Comparison:
    """Every table of the report, by metric and in the order of the study's systems."""

    metrics: tuple[str, ...]
    means: dict[str, tuple[Mean, ...]] = field(default_factory=dict)
    differences: dict[str, tuple[Difference, ...]] = field(default_factory=dict)
    level: float = 0.95
    resamples: int = 2000

    def mean(self, system: str, metric: str) -> Mean | None:
        return next((mean for mean in self.means[metric] if mean.system == system), None)

    def difference(self, system: str, metric: str) -> Difference | None:
        return next((d for d in self.differences[metric] if d.system == system), None)


def compare_systems(study: Study, *, level: float = 0.95, resamples: int = 2000) -> Comparison:
    """Means and differences on every metric of the study.

    A metric that a system does not define anywhere has no record of that system; catalog/coverage, which belongs to no
    single conversation, has means without intervals, and no differences.
    """
    options = {"level": level, "n_resamples": resamples}
    metrics = tuple(sorted({*study.metrics, COVERAGE}, key=metric_order))
    means, differences = {}, {}
    others = [system for system in study.systems if system is not study.baseline]
    for metric in metrics:
        found = (_mean(system, metric, study.clusters, options) for system in study.systems)
        means[metric] = tuple(mean for mean in found if mean)
        pairs = (_difference(system, study.baseline, metric, study.clusters, options) for system in others)
        differences[metric] = tuple(pair for pair in pairs if pair)
        _correct(differences[metric])
    return Comparison(metrics, means, differences, level, resamples)


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Mean over seeds [M] of values [S, M], over those in which a conversation defines the metric; nan where none."""
    defined = ~np.isnan(values)
    count = defined.sum(0)
    total = np.where(defined, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _mean(system: System, metric: str, clusters: np.ndarray, options: dict) -> Mean | None:
    if metric == COVERAGE:
        each = tuple(replicate.coverage for replicate in system.replicates)
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
        nan = math.nan
        size = len(system.replicates[0].order)
        return Mean(system.label, metric, float(np.mean(each)), nan, nan, nan, nan, spread, each, size)
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
    each = tuple(_nanmean(row) for row in values)
    return Mean(system.label, metric, found.mean, found.low, found.high, low, high, spread, each, int(defined.sum()))


def _difference(
    system: System, baseline: System, metric: str, clusters: np.ndarray, options: dict
) -> Difference | None:
    if metric == COVERAGE:
        return None
    a, b = system.values(metric), baseline.values(metric)
    first, second = over_seeds(a), over_seeds(b)
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return None
    found = paired_cluster_bootstrap(first[both], second[both], clusters[both], **options)
    seeds, each = _per_seed(system, baseline, a, b)
    a, b, paired = in_pairs(system, baseline, a, b)
    everywhere = ~(np.isnan(a).any(0) | np.isnan(b).any(0))
    low = high = p = df = conversations = between = math.nan
    if everywhere.any() and not (system.fixed and baseline.fixed):
        crossed = crossed_difference(
            a[:, everywhere], b[:, everywhere], clusters[everywhere], paired_seeds=paired, **options
        )
        _, low, high, p, _, df, conversations, between = crossed
    return Difference(
        system=system.label,
        baseline=baseline.label,
        metric=metric,
        mean=found.mean,
        low=found.low,
        high=found.high,
        p=found.p_value,
        effect_size=found.effect_size,
        crossed_low=low,
        crossed_high=high,
        crossed_p=p,
        df=df,
        conversation_variance=conversations,
        seed_variance=between,
        paired_seeds=paired,
        per_seed=each,
        seeds=seeds,
        conversations=int(both.sum()),
    )


def in_pairs(system: System, baseline: System, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Values [S, M] of both, and whether row s of one belongs to row s of the other.

    Rows are pairs where both were trained with the same seeds. A system that was not trained at all stands beside each
    seed of the other, for it would be the same whatever that seed.
    """
    if system.fixed or baseline.fixed:
        shape = np.broadcast_shapes(a.shape, b.shape)
        return np.broadcast_to(a, shape), np.broadcast_to(b, shape), True
    return a, b, system.seeds == baseline.seeds


def _per_seed(
    system: System, baseline: System, a: np.ndarray, b: np.ndarray
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The seeds that both have, and the mean difference of each."""
    if system.fixed or baseline.fixed:
        return system.seeds or baseline.seeds, tuple(_nanmean(row) for row in a - b)
    shared = tuple(seed for seed in system.seeds if seed in baseline.seeds)
    rows = [a[system.seeds.index(seed)] - b[baseline.seeds.index(seed)] for seed in shared]
    return shared, tuple(_nanmean(row) for row in rows)


def _correct(differences: Sequence[Difference]) -> None:
    """Holm over the systems; a test that could not be made is no member of the family."""
    for name in ("p", "crossed_p"):
        tested = [d for d in differences if not math.isnan(getattr(d, name))]
        if tested:
            for difference, p in zip(tested, holm([getattr(d, name) for d in tested]), strict=True):
                setattr(difference, f"{name}_holm", float(p))


def _nanmean(row: np.ndarray) -> float:
    defined = row[~np.isnan(row)]
    return float(defined.mean()) if len(defined) else math.nan
