"""Metrics, baselines, and statistics of differences between runs."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.evaluate.metrics.ranking import ranking_metrics

__all__ = ["ranking_metrics"]

__getattr__ = lazy(__name__, **{"metrics.ranking": ["ranking_metrics"]})
