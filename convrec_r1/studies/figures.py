"""Figures of a run, drawn from its files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, none is opened

import matplotlib.pyplot as plt
import numpy as np

from convrec_r1.base.files import replacing
from convrec_r1.evaluate.labels import COLORS, LABELS, TRAINED, VALIDATION
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.studies.curves import smoothed


def run_figure(
    path: Path,
    records: list[dict[str, Any]],
    systems: dict[str, Evaluation],
    intervals: dict[str, dict[str, list]],
    metric: str,
) -> Path:
    """Three panels: how training went, how the systems compare, and how far down the list hits reach."""
    with plt.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    ):
        figure, (learning, comparison, ranks) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        _learning(learning, records, metric)
        _comparison(comparison, systems, intervals, metric)
        _ranks(ranks, systems)
        with replacing(path) as scratch:
            figure.savefig(scratch, format="png", dpi=150)
        plt.close(figure)
    return path


def _series(records: list[dict[str, Any]], split: str, name: str) -> tuple[list[int], list[float]]:
    points = [(r["step"], r["values"][name]) for r in records if r["split"] == split and name in r["values"]]
    return [step for step, _ in points], [value for _, value in points]


def _learning(axes, records: list[dict[str, Any]], metric: str) -> None:
    steps, reward = _series(records, "train", "reward")
    if not steps:
        steps, loss = _series(records, "sft", "sft/loss")
        axes.plot(steps, loss, color=COLORS["sft"])
        axes.set(title="Warm start", xlabel="SFT step", ylabel="cross-entropy per token")
        return
    axes.plot(steps, reward, color=TRAINED, alpha=0.25, linewidth=1)
    axes.plot(steps, smoothed(np.array(reward)), color=TRAINED, label="reward of sampled lists (smoothed)")
    axes.set(title="RL", xlabel="RL step", ylabel="reward (DCG)")
    axes.set_ylim(bottom=0)
    held_out, values = _series(records, "validation", f"val/{metric}")
    if held_out:
        other = axes.twinx()
        other.spines["right"].set_visible(True)
        other.plot(held_out, values, color=VALIDATION, marker="o", markersize=4, label=f"validation {metric}, greedy")
        other.set(ylabel=metric)
        other.set_ylim(bottom=0)
        handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        axes.legend(handles, [h.get_label() for h in handles], frameon=False, loc="lower right", fontsize=8)


def _comparison(axes, systems: dict[str, Evaluation], intervals, metric: str) -> None:
    names = list(systems)
    means = np.array([systems[name].summary()[metric] for name in names])
    low = [intervals[name][metric][0] for name in names]
    high = [intervals[name][metric][1] for name in names]
    errors = np.array(
        [[m - (m if a is None else a), (m if b is None else b) - m] for m, a, b in zip(means, low, high, strict=True)]
    ).T
    colors = [COLORS.get(name, TRAINED) for name in names]
    axes.bar(range(len(names)), means, yerr=np.maximum(errors, 0), color=colors, capsize=3, width=0.65)
    for i, mean in enumerate(means):
        top = mean if high[i] is None else high[i]
        axes.annotate(f"{mean:.3f}", (i, top), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom")
    axes.set_xticks(range(len(names)), [LABELS.get(name, name) for name in names])
    axes.set(title=f"{metric} on held-out conversations", ylabel=metric)


def _ranks(axes, systems: dict[str, Evaluation]) -> None:
    for name, evaluation in systems.items():
        if name == "zero_shot":
            continue
        hits = np.array([sample.hits for sample in evaluation.samples]).mean(0)
        axes.plot(
            range(1, len(hits) + 1), hits, marker=".", color=COLORS.get(name, TRAINED), label=LABELS.get(name, name)
        )
    axes.set(title="Relevance per rank", xlabel="rank", ylabel="share of lists with a hit")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
