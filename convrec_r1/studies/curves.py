"""Training curves of a system: its seeds on one axis of steps, smoothed, with the mean and the spread between seeds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from convrec_r1.studies.run_files import Run

MAX_POINTS = 240
"""More would not be seen, and would make the report heavy."""


class Curve(NamedTuple):
    """`mean`, `low` and `high` (lowest and highest seed) at `steps`. `whole`: how many of the steps, from the first,
    all seeds have; after that the mean is of those that went on."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    whole: int


class Measure(NamedTuple):
    """A curve of the report: where its values are, and how it is labelled."""

    key: str
    title: str
    unit: str
    split: str
    value: Callable[[dict[str, float]], float | None]
    smooth: bool = True


def logged(name: str) -> Callable[[dict[str, float]], float | None]:
    return lambda values: values.get(name)


def _tokens_per_step(values: dict[str, float]) -> float | None:
    speed, seconds = values.get("tokens_per_second"), values.get("time/step")
    return None if speed is None or seconds is None else speed * seconds


TRAINING = (
    Measure("kl", "KL to the reference", "nats a token", "train", logged("kl")),
    Measure("entropy", "Entropy", "nats a token", "train", logged("entropy")),
    Measure("clip", "Clipped tokens", "share", "train", logged("clip_ratio/region_mean")),
    Measure("zero_std", "Units without a signal", "share of groups", "train", logged("frac_reward_zero_std")),
    Measure("grad_norm", "Gradient norm", "before clipping", "train", logged("grad_norm")),
    Measure("length", "List length", "lines", "train", logged("list/length")),
    Measure("repeats", "Repeats", "per list", "train", logged("list/duplicates")),
    Measure("seen", "Seen titles", "per list", "train", logged("list/seen")),
    Measure("catalog", "In the catalog", "share of lines", "train", logged("catalog/valid")),
    Measure("seconds", "Time per step", "seconds", "train", logged("time/step")),
    Measure("tokens", "Tokens per step", "sampled tokens", "train", _tokens_per_step),
    Measure("completion", "Completion length", "tokens", "train", logged("completions/mean_length")),
)
REWARD = Measure("reward", "Training reward", "reward of a sampled list", "train", logged("reward"))


def validation(metric: str, label: str) -> Measure:
    return Measure("validation", f"Validation {label}", label, "validation", logged(f"val/{metric}"), smooth=False)


def curve(runs: Sequence[Run], measure: Measure) -> Curve | None:
    """The curve of one system. None where no seed logged it.

    A run that began anew has each step once (run_files); a run that ended early has fewer. Each seed is smoothed for
    itself, then the seeds are averaged step by step.
    """
    seeds = []
    for run in runs:
        points = [(step, measure.value(values)) for step, values in run.history.get(measure.split, [])]
        points = [(step, value) for step, value in points if value is not None and np.isfinite(value)]
        if points:
            steps, values = zip(*points, strict=True)
            seeds.append((np.array(steps), smoothed(np.array(values)) if measure.smooth else np.array(values)))
    if not seeds:
        return None
    steps = np.unique(np.concatenate([s for s, _ in seeds]))
    table = np.full((len(seeds), len(steps)), np.nan)
    for row, (own, values) in enumerate(seeds):
        table[row, np.searchsorted(steps, own)] = values
    # Seeds that were logged at different steps are averaged where all were; after the end of the first to end, over the rest.
    complete = ~np.any(np.isnan(table), axis=0)
    if complete.any():
        kept = complete | (steps > min(own[-1] for own, _ in seeds))
        steps, table, complete = steps[kept], table[:, kept], complete[kept]
    whole = int(complete.sum()) or len(steps)
    keep = _thinned(len(steps))
    steps, table, whole = steps[keep], table[:, keep], int((keep < whole).sum())
    count = (~np.isnan(table)).sum(0)
    mean = np.where(np.isnan(table), 0, table).sum(0) / count
    low = np.where(np.isnan(table), np.inf, table).min(0)
    high = np.where(np.isnan(table), -np.inf, table).max(0)
    return Curve(steps, mean, low, high, whole)


def rank_rewards(runs: Sequence[Run], ranks: int, columns: int = 40) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges of at most `columns` spans of steps [X + 1], and the mean of `rank/<k>/reward` over steps and seeds in
    each, [ranks, X]. None where it was not logged."""
    rows = [
        (step, [values.get(f"rank/{k + 1}/reward", np.nan) for k in range(ranks)])
        for run in runs
        for step, values in run.history.get("train", [])
        if "rank/1/reward" in values
    ]
    if not rows:
        return None
    steps = np.array([step for step, _ in rows])
    values = np.array([row for _, row in rows])
    edges = np.linspace(steps.min(), steps.max() + 1, min(columns, int(steps.max() - steps.min() + 1)) + 1)
    place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, len(edges) - 2)
    table = np.full((ranks, len(edges) - 1), np.nan)
    for column in np.unique(place):
        part = values[place == column]
        defined = ~np.isnan(part).all(0)
        table[defined, column] = np.nanmean(part[:, defined], 0)
    return edges, table


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving mean over `window(len(values))`; the ends take what neighbours there are."""
    kernel = np.ones(min(window(len(values)), len(values)))
    if len(kernel) == 1:
        return values
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def window(size: int) -> int:
    """Steps that a curve of `size` steps is smoothed over: 9, more for long runs, fewer for very short ones."""
    return 1 if size < 12 else max(9, size // 40 | 1)


def _thinned(size: int) -> np.ndarray:
    """Places of at most MAX_POINTS of `size` points, the first and the last among them."""
    return np.unique(np.linspace(0, size - 1, min(size, MAX_POINTS)).round().astype(int))
