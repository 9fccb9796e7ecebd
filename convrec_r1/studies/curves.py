"""Training curves of a system: mean and range over its seeds, smoothed, by step."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from convrec_r1.studies.run_files import History, series

MAX_POINTS = 240
"""Largest number of points of a curve. More points are not visible and make the report file large."""


class Curve(NamedTuple):
    """Mean, minimum and maximum over seeds at each step."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    whole: int
    """Number of points, from the first, with values of all seeds. Later points have those of the longer runs only."""


class Measure(NamedTuple):
    """A curve of the report: labels, and a function that reads its values."""

    key: str
    title: str
    unit: str
    value: Callable[[History], pd.Series]
    smooth: bool = True
    axis: str = "RL step"
    caption: str = ""


def logged(name: str, split: str = "train") -> Callable[[History], pd.Series]:
    """Return a function that reads the values logged under `name`."""
    return lambda history: series(history, split, name)


def _tokens_per_step(history: History) -> pd.Series:
    return (series(history, "train", "tokens_per_second") * series(history, "train", "time/step")).dropna()


def _training(key: str, title: str, unit: str, name: str, caption: str = "") -> Measure:
    return Measure(key, title, unit, logged(name), caption=caption)


TRAINING = (
    _training(
        "kl", "KL to the reference", "nats per token", "kl",
        "Estimated by k3 on the sampled tokens. Runs without a KL term have no curve.",
    ),
    _training("entropy", "Entropy", "nats per token", "entropy"),
    _training(
        "clip", "Clipped tokens", "share", "clip_ratio/region_mean",
        "Share of tokens with a clipped ratio. It is 0 if each rollout is used for one optimizer step.",
    ),
    _training(
        "zero_std", "Groups with equal rewards", "share of groups", "frac_reward_zero_std",
        "All lists (or ranks) of such a group have the same reward, so their advantage is 0.",
    ),
    _training("grad_norm", "Gradient norm", "before clipping", "grad_norm"),
    _training("length", "List length", "lines", "list/length"),
    _training("repeats", "Repeats", "per list", "list/duplicates"),
    _training("seen", "Seen titles", "per list", "list/seen"),
    _training("catalog", "In the catalog", "share of lines", "catalog/valid"),
    _training(
        "seconds", "Time per step", "seconds", "time/step", "Wall-clock time: it also depends on the machine."
    ),
    Measure("tokens", "Tokens per step", "sampled tokens", _tokens_per_step),
    _training("completion", "Completion length", "tokens", "completions/mean_length"),
)  # fmt: skip
REWARD = _training("reward", "Training reward", "reward of a sampled list", "reward")
SFT_LOSS = Measure("sft_loss", "SFT", "cross-entropy per token", logged("sft/loss", "sft"), axis="SFT step")


def validation(metric: str, label: str) -> Measure:
    """Return the validation curve of a metric."""
    values = logged(f"val/{metric}", "validation")
    return Measure("validation", f"Validation {label}", label, values, smooth=False)


def curve(histories: Sequence[History], measure: Measure) -> Curve | None:
    """Return the curve of one system, or None if no seed logged it. Each seed is smoothed before they are averaged."""
    seeds = [found for history in histories if len(found := measure.value(history))]
    if not seeds:
        return None
    table = pd.concat([smoothed(seed) if measure.smooth else seed for seed in seeds], axis=1).sort_index()
    # Seeds may log at different steps. A mean needs all seeds until the shortest run ends, then those that remain.
    complete = table.notna().all(axis=1).to_numpy()
    if complete.any():
        kept = complete | (table.index.to_numpy() > min(seed.index[-1] for seed in seeds))
        table, complete = table[kept], complete[kept]
    whole = int(complete.sum()) or len(table)
    keep = np.unique(np.linspace(0, len(table) - 1, min(len(table), MAX_POINTS)).round().astype(int))
    table = table.iloc[keep]
    mean, low, high = (getattr(table, name)(axis=1).to_numpy() for name in ("mean", "min", "max"))
    return Curve(table.index.to_numpy(), mean, low, high, int((keep < whole).sum()))


def rank_rewards(histories: Sequence[History], ranks: int, columns: int = 40) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the mean of `rank/<k>/reward` over seeds, in at most `columns` intervals of steps.

    Returns:
        Edges of the intervals [X + 1] and means [ranks, X], NaN without a value. None if it was not logged.
    """
    names = [f"rank/{k + 1}/reward" for k in range(ranks)]
    frames: list[pd.DataFrame] = [h["train"] for h in histories if names[0] in h.get("train", pd.DataFrame())]
    if not frames:
        return None
    values = pd.concat([pd.DataFrame(frame.dropna(subset=[names[0]]), columns=names) for frame in frames])
    steps = values.index.to_numpy()
    first, last = int(steps.min()), int(steps.max())
    edges = np.linspace(first, last + 1, min(columns, last - first + 1) + 1)
    place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, len(edges) - 2)
    table = np.full((ranks, len(edges) - 1), np.nan)
    for column in np.unique(place):
        table[:, column] = values[place == column].mean().to_numpy()
    return edges, table


def smoothed(values: pd.Series) -> pd.Series:
    """Return the centred moving mean over `window(len(values))` steps, over fewer at the ends."""
    return pd.Series(values.rolling(window(len(values)), center=True, min_periods=1).mean())


def window(size: int) -> int:
    """Return the width of the moving mean for `size` steps: 9, more for long runs, 1 (no smoothing) below 12 steps."""
    return 1 if size < 12 else max(9, size // 40 | 1)
