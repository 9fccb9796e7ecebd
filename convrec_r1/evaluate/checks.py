"""Checks of the evaluation options, before data is loaded."""

from collections.abc import Mapping
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.plugins import TARGET, locate, plain
from convrec_r1.evaluate.baselines import chosen_baselines
from convrec_r1.evaluate.config import EvalConfig, Select, cutoffs, metric_in_effect
from convrec_r1.evaluate.metrics import all_labels, build_metrics


def problems(
    cfg: EvalConfig, n: int, metrics: Mapping[str, Any], baselines: Mapping[str, Any], *, reinforces: bool
) -> list[str]:
    """Return a sentence for each problem.

    Args:
        cfg: Options within their bounds.
        n: Recommendations in a list.
        metrics, baselines: The nodes of the config.
        reinforces: Whether the run has an RL stage.
    """
    wrong = [] if cfg.ks else ["eval.ks=[]: give at least one cut-off of 1 or more."]
    for name in chosen_baselines(baselines, cfg.baselines):
        if name not in baselines:
            wrong.append(f"eval.baselines has {name!r}: choose among {', '.join(baselines) or 'none'}.")
        elif target := plain(baselines[name]).get(TARGET):
            wrong += _said(locate, target, f"baselines.{name}")
        else:
            wrong.append(f"baselines.{name} has no {TARGET}: name a class.")
    wrong += _said(_check_metric, cfg, n, metrics)
    for key, asked in (("select=best", cfg.select is Select.best), ("patience", cfg.patience is not None)):
        if asked and not cfg.every and reinforces:
            wrong.append(f"eval.{key} needs evaluations during training: set eval.every above 0.")
    return wrong


def _check_metric(cfg: EvalConfig, n: int, nodes: Mapping[str, Any]) -> None:
    """Build the metrics. Raise UserError if that fails, or if `eval.metric` is not one of their values."""
    ks = cutoffs(cfg.ks, n)
    labels = all_labels(build_metrics(nodes, n=n, ks=ks, ideal=cfg.ideal), n, ks)
    known = [name for name, label in labels.items() if label.per_list and label.better == "high"]
    metric = metric_in_effect(cfg, n)
    if metric not in known:
        raise UserError(
            f"eval.metric={metric}: with these values of eval.ks, n and metrics, choose one of {', '.join(known) or 'none'}. "
            "It must be a metric with a value for each list, where higher is better."
        )


def _said(check: Any, *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except UserError as error:
        return [str(error)]
    return []
