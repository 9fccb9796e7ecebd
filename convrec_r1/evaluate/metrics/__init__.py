"""Metrics: one class each, with name, label, formula, source and edge cases. conf/metrics lists the metrics in use.

To add a metric, write a class with the members of `Metric`, and a file conf/metrics/NAME.yaml with its `_target_`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import build, is_own
from convrec_r1.evaluate.metrics.average_precision import AveragePrecision
from convrec_r1.evaluate.metrics.base import Label, Lists, Metric, find_label, names
from convrec_r1.evaluate.metrics.coverage import Coverage
from convrec_r1.evaluate.metrics.diversity import Diversity
from convrec_r1.evaluate.metrics.gini import Gini
from convrec_r1.evaluate.metrics.list_quality import ListQuality
from convrec_r1.evaluate.metrics.novelty import Novelty
from convrec_r1.evaluate.metrics.popularity_rank import PopularityRank
from convrec_r1.evaluate.metrics.rank_hits import RankHits
from convrec_r1.evaluate.metrics.ranking import MRR, NDCG, HitRate, Recall
from convrec_r1.evaluate.metrics.segment_recall import SegmentRecall

__all__ = [
    "BUILT_IN", "MRR", "NDCG", "AveragePrecision", "Coverage", "Diversity", "Gini", "HitRate", "Label", "ListQuality", "Lists",
    "Metric", "Novelty", "PopularityRank", "RankHits", "Recall", "SegmentRecall", "all_labels", "build_metrics", "find_label",
    "foreign_labels",
]  # fmt: skip

BUILT_IN: tuple[type[Metric], ...] = (
    NDCG, Recall, HitRate, AveragePrecision, MRR, SegmentRecall, PopularityRank, Novelty, Diversity, Coverage, Gini,
    ListQuality, RankHits,
)  # fmt: skip
"""Built-in metrics, in the order of the reports within each group."""


def build_metrics(nodes: Mapping[str, Any], *, n: int, ks: Sequence[int], ideal: str = "standard") -> dict[str, Metric]:
    """Build the metrics of `nodes`, the config's `metrics`. Return them by key.

    Raises:
        UserError: A class cannot be built or is not a Metric.
    """
    found = {}
    for key, node in nodes.items():
        metric = found[key] = build(node, f"metrics.{key}", Metric, n=n, ks=list(ks), ideal=ideal)
        labels: Any = metric.labels
        if not isinstance(labels, Mapping) or not all(isinstance(label, Label) for label in labels.values()):
            raise UserError(f"metrics.{key}: `labels` of {type(metric).__name__} must map each name to a Label.")
    return found


def all_labels(metrics: Mapping[str, Metric], n: int, ks: Sequence[int]) -> dict[str, Label]:
    """Return the names of all values of `metrics`, for lists of `n` and cut-offs `ks`, with their labels."""
    return {name: label for metric in metrics.values() for name, label in names(metric.labels, n, ks).items()}


def foreign_labels(metrics: Mapping[str, Metric], n: int, ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the labels of users' metrics as plain values, for summary.json ("labels")."""
    foreign = {key: metric for key, metric in metrics.items() if not is_own(type(metric).__module__)}
    return {name: label._asdict() for name, label in all_labels(foreign, n, ks).items()}
