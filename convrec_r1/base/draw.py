"""Figures: one style for all of them, bars with intervals, and files that are written whole."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, none is opened

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convrec_r1.base.files import replacing

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "svg.hashsalt": "convrec_r1",  # the same figure is the same file
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The style of all figures, for a `with` block."""
    with plt.rc_context(_STYLE), warnings.catch_warnings():
        # A title in a script that the font lacks is drawn as boxes; a warning would not help.
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from.*")
        yield


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `size` (inches) and its axes [rows, columns]. `options`: of `plt.subplots`."""
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG to `path` and close it."""
    try:
        with replacing(path) as scratch:
            figure.savefig(scratch, format="png", dpi=150)
    finally:
        plt.close(figure)
    return path


def bars(
    axes: Axes,
    names: Sequence[str],
    means: Sequence[float],
    bounds: Sequence[tuple[float | None, float | None]],
    colors: Sequence[str],
    *,
    horizontal: bool = False,
) -> None:
    """Bars with intervals and their values as text.

    Args:
        names, means, bounds, colors: one entry a bar; `bounds` are (low, high), None or NaN where there is no interval.
        horizontal: Bars from left to right, the first one on top.
    """
    values = np.array(means, dtype=float)
    ends = np.array([[np.nan if end is None else end for end in pair] for pair in bounds], dtype=float).reshape(-1, 2)
    errors = error_bars(values, ends[:, 0], ends[:, 1])
    places = np.arange(len(values))
    if horizontal:
        places = places[::-1]
        axes.barh(places, values, xerr=errors, color=colors, capsize=3, height=0.65)
        axes.set_yticks(places, list(names))
    else:
        axes.bar(places, values, yerr=errors, color=colors, capsize=3, width=0.65)
        axes.set_xticks(places, list(names))
    for place, value, error in zip(places, values, errors[1], strict=True):
        end = value + error
        at, offset = ((end, place), (4, 0)) if horizontal else ((place, end), (0, 3))
        axes.annotate(
            f"{value:.3f}",
            at,
            xytext=offset,
            textcoords="offset points",
            ha="left" if horizontal else "center",
            va="center" if horizontal else "bottom",
        )
    axes.grid(visible=False, axis="y" if horizontal else "x")
    axes.margins(x=0.12 if horizontal else 0.05, y=0.05 if horizontal else 0.1)  # room for the values


def error_bars(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths of error bars below and above `mean`, [2, ...]; 0 where there is no interval."""
    return np.nan_to_num(np.maximum([mean - low, high - mean], 0))
