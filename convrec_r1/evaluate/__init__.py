"""Metrics, baselines and statistics: what a list is worth, and whether a difference between two runs is real."""

from convrec_r1.evaluate.metrics import ranking_metrics

__all__ = ["ranking_metrics"]
