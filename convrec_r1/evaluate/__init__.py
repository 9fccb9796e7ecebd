"""Metrics, baselines and statistics: what a list is worth, and whether a difference between two runs is real."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.evaluate.metrics.ranking import ranking_metrics

__all__ = ["ranking_metrics"]

__getattr__ = lazy(__name__, **{"metrics.ranking": ["ranking_metrics"]})
