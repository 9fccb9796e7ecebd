"""Data of a study: its systems, and the values of each policy on the same conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convrec_r1.data import Conversation
from convrec_r1.evaluate.labels import LABELS
from convrec_r1.evaluate.scoring import Evaluation, Sample
from convrec_r1.studies.naming import ABSENT, differing_keys, text
from convrec_r1.studies.numbers import Writer
from convrec_r1.studies.run_files import History, Judged, Run


@dataclass(frozen=True)
class Replicate:
    """One policy of a system, with its lists in the order of the study's conversations."""

    seed: int | None
    """None: not trained."""
    samples: tuple[Sample, ...]
    values: pd.DataFrame
    """A row per conversation [M], a column per metric, `rank/<k>/hit` included. NaN: not defined."""
    totals: Mapping[str, float]
    """Metrics of the whole set of lists."""


@dataclass(frozen=True)
class System:
    """A training config with one or several seeds, or a baseline."""

    label: str
    kind: str
    """Name of the algorithm or the baseline."""
    config: dict[str, Any]
    """Config keys that it depends on, without the seed."""
    replicates: tuple[Replicate, ...]
    runs: tuple[Run, ...] = ()
    """Runs that trained it. Empty for a baseline that other runs evaluated."""

    @property
    def is_baseline(self) -> bool:
        return not self.runs

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(r.seed for r in self.replicates if r.seed is not None)

    @property
    def fixed(self) -> bool:
        """True: not trained, so the lists do not depend on the seed."""
        return not self.seeds

    @property
    def metrics(self) -> set[str]:
        return {name for replicate in self.replicates for name in replicate.values}

    @property
    def histories(self) -> list[History]:
        return [run.history for run in self.runs]

    def values(self, metric: str) -> np.ndarray:
        """Return values [S, M]: a row per seed, a column per conversation. NaN: not defined."""
        missing = np.full(len(self.replicates[0].samples), np.nan)
        return np.stack([r.values[metric].to_numpy() if metric in r.values else missing for r in self.replicates])

    def mean(self, metric: str) -> float:
        """Return the mean over conversations of the mean over seeds. NaN: not defined."""
        averaged = over_seeds(self.values(metric))
        return float(np.nanmean(averaged)) if np.isfinite(averaged).any() else float("nan")


@dataclass(frozen=True)
class Study:
    """Systems to compare, on the same conversations."""

    systems: tuple[System, ...]
    """Baselines first, then trained systems."""
    baseline: System
    """System that the others are compared with."""
    metric: str
    ids: tuple[str, ...]
    """[M]: ids of the conversations."""
    clusters: np.ndarray
    """[M]: cluster number of each conversation."""
    split: str
    n: int
    left_out: tuple[tuple[Path, str], ...] = ()
    """Folders without a comparable run, with the reason."""
    notes: tuple[str, ...] = ()
    """Limits of the conclusions, as sentences."""
    conversations: dict[str, Conversation] | None = None
    """Conversations by id. None: no run stored them."""
    write: Writer = field(default_factory=Writer)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for system in self.systems for run in system.runs)

    @property
    def trained(self) -> tuple[System, ...]:
        return tuple(system for system in self.systems if system.runs)

    @property
    def foreign(self) -> bool:
        """True if another system wrote some of the lists (task=score)."""
        return any(run.config.get("task.name") == "score" for run in self.runs)

    @property
    def n_clusters(self) -> int:
        return len(np.unique(self.clusters))

    @property
    def config_differences(self) -> list[tuple[str, list[str]]]:
        """Config keys in which the trained systems differ, with the value of each system as text."""
        configs = [system.config for system in self.trained]
        return [(key, [text(c.get(key, ABSENT), 60) for c in configs]) for key in differing_keys(configs)]


def make_replicate(seed: int | None, judged: Judged, ids: Sequence[str]) -> Replicate:
    """Return an evaluation in the order of `ids`. ValueError if its conversations are others."""
    by_id = {sample.id: sample for sample in judged.evaluation.samples}
    if set(by_id) != set(ids):
        raise ValueError("evaluations of one study must have the same conversations")
    samples = tuple(by_id[name] for name in ids)
    values = pd.DataFrame([sample.metrics for sample in samples], dtype=float)
    hits = pd.DataFrame([sample.hits for sample in samples], dtype=float).fillna(0.0)
    hits.columns = [f"rank/{k + 1}/hit" for k in hits]
    values = pd.concat([values.drop(columns=[name for name in hits if name in values]), hits], axis=1)
    every = {**judged.evaluation.summary(), **judged.totals}
    return Replicate(seed, samples, values, {k: v for k, v in every.items() if k not in values})


def over_seeds(values: np.ndarray) -> np.ndarray:
    """Return the mean [M] over the seeds of values [S, M], without NaN. NaN: not defined for any seed."""
    defined = ~np.isnan(values)
    count = defined.sum(0)
    total = np.where(defined, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def evaluation_study(
    evaluations: Mapping[str, Evaluation], trained: Run, metric: str, *, n: int, write: Writer
) -> Study:
    """Return the study of one run.

    Args:
        evaluations: Evaluations by name of the system. The last one is the run's policy, and the baseline of the study.
        trained: The run.
        metric: Metric of the report.
        n: Length of lists.
        write: Formats names and values of metrics.

    Raises:
        ValueError: The evaluations have different conversations.
    """
    *_, final = evaluations
    samples = evaluations[final].samples
    ids = tuple(sample.id for sample in samples)
    systems = tuple(
        System(
            label=LABELS.get(name, name),
            kind=name,
            config={},
            replicates=(
                make_replicate(trained.seed if name == final and trained.trained else None, Judged(evaluation), ids),
            ),
            runs=(trained,) if name == final else (),
        )
        for name, evaluation in evaluations.items()
    )
    clusters = np.unique(np.array([sample.cluster for sample in samples]), return_inverse=True)[1]
    return Study(systems, systems[-1], metric, ids, clusters, trained.split, n, write=write)
