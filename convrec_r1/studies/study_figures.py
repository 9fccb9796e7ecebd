"""Figures of a comparison: small, one question each, a system in the same colour everywhere. PNG to use elsewhere, SVG
for the report."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, none is opened

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from convrec_r1.base.files import replacing
from convrec_r1.evaluate.labels import Style, metric_label, styles
from convrec_r1.studies.comparison import Comparison
from convrec_r1.studies.curves import REWARD, TRAINING, Measure, curve, rank_rewards, validation
from convrec_r1.studies.study import Study, System

# Inches. Small, so that text can still be read on a phone.
SIZE = (5.6, 3.9)
SMALL = (4.2, 3.1)
_RC: dict[Any, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold", "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.edgecolor": "#888888", "axes.labelcolor": "#333333", "xtick.color": "#555555",
    "ytick.color": "#555555", "axes.grid": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.7, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9, "text.parse_math": False, "svg.hashsalt": "convrec_r1",
}  # fmt: skip
_MARKED = 30  # points of a curve, at most, that are marked
_LONGEST = 38  # characters of a name in a legend


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    name: str
    """Of its file, without the ending."""
    section: str
    """Where it belongs: "results", "ranks" or "training"."""
    caption: str
    svg: bytes
    small: bool = False


def study_figures(study: Study, comparison: Comparison, folder: Path) -> list[Drawn]:
    """Draw everything that the runs have numbers for, as PNG files in `folder`. A metric that no run logged: no figure."""
    looks = dict(zip([s.label for s in study.systems], system_styles(study), strict=True))
    page = _Page(study, comparison, looks, folder)
    with plt.rc_context(_RC), warnings.catch_warnings():
        # A title in a script that the font lacks shows as boxes; it is no reason to alarm anyone.
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from.*")
        page.learning()
        page.ranks()
        page.training()
        page.overview(("validation", "ndcg_difference", "rank_relevance"))
    return page.drawn


def system_styles(study: Study) -> list[Style]:
    return styles([system.kind if system.is_baseline or system.kind == "sft" else "" for system in study.systems])


class _Page:
    """The figures, in the order in which they are shown."""

    def __init__(self, study: Study, comparison: Comparison, looks: dict[str, Style], folder: Path) -> None:
        self.study, self.comparison, self.looks, self.folder = study, comparison, looks, folder
        self.drawn: list[Drawn] = []
        self.bodies: dict[str, Callable[[Axes], None]] = {}
        """What draws each figure of one panel, by its name."""

    def learning(self) -> None:
        label = metric_label(self.study.metric)
        self.curves(
            validation(self.study.metric, label),
            "results",
            f"{label} of greedy lists on validation conversations during training, mean over seeds; the band runs from the "
            "lowest to the highest seed.",
        )
        rewards = {run.config.get("reward.sequence") for run in self.study.runs}
        caption = (
            "Reward of the lists sampled in training, smoothed by a moving mean; band: lowest to highest seed. It is of "
            "sampled, not of greedy lists."
        )
        if len(rewards) > 1:
            caption += " The runs differ in reward.sequence, so the heights of their curves do not compare."
        self.curves(REWARD, "results", caption)
        for family in ("ndcg", "recall"):
            self.by_k(family)

    def by_k(self, family: str) -> None:
        """A family of metrics against its cut-off k: levels, and differences from the baseline."""
        study, comparison = self.study, self.comparison
        ks = [name for name in comparison.metrics if name.startswith(f"{family}@")]
        if len(ks) < 2:
            return
        x = [int(name.partition("@")[2]) for name in ks]
        label = metric_label(ks[0]).partition("@")[0]

        def levels(axes: Axes) -> None:
            for system in self.shown():
                found = [(k, m) for k, name in zip(x, ks, strict=True) if (m := comparison.mean(system.label, name))]
                self.line(axes, system, [k for k, _ in found], [m.mean for _, m in found])
            axes.set(title=f"{label}@k", xlabel="k", ylabel=f"{label}@k", xticks=x)
            axes.set_ylim(bottom=0)

        def gaps(axes: Axes) -> None:
            others = self.held_against()
            axes.axhline(0, color="#444444", linewidth=1)
            width = (x[-1] - x[0]) * 0.012
            for place, system in enumerate(others):
                found = [
                    (k, d) for k, name in zip(x, ks, strict=True) if (d := comparison.difference(system.label, name))
                ]
                if not found:
                    continue
                at = np.array([k for k, _ in found]) + (place - (len(others) - 1) / 2) * width
                mean, low, high = (np.array([getattr(d, part) for _, d in found]) for part in ("mean", "low", "high"))
                look = self.looks[system.label]
                axes.errorbar(
                    at, mean, yerr=_bars(mean, low, high), color=look.color, linestyle=look.line,
                    marker=look.marker, markersize=5, capsize=3, linewidth=1.8,
                )  # fmt: skip
            axes.set(title=f"{label}@k minus {_short(study.baseline.label)}", xlabel="k", ylabel="difference", xticks=x)

        self.draw(f"{family}_at_k", "results", f"{label} at each cut-off, mean over seeds and conversations.", levels)
        self.draw(
            f"{family}_difference",
            "results",
            f"{label}@k minus that of {study.baseline.label}, with {comparison.level:.0%} intervals for other conversations "
            "(these policies). A gap that grows with k is one that comes from the tail.",
            gaps,
            systems=self.held_against(),
        )

    def ranks(self) -> None:
        study, comparison = self.study, self.comparison
        names = [f"rank/{k + 1}/hit" for k in range(study.n) if f"rank/{k + 1}/hit" in comparison.metrics]
        x = np.arange(1, len(names) + 1)

        def relevance(axes: Axes) -> None:
            for system in self.shown():
                found = [m for name in names if (m := comparison.mean(system.label, name))]
                self.line(axes, system, x[: len(found)], [m.mean for m in found])
            axes.set(title="Relevance per rank", xlabel="rank", ylabel="share of lists with a hit")
            axes.set_ylim(bottom=0)
            axes.set_xticks(_rank_ticks(len(names)))

        self.draw(
            "rank_relevance", "ranks",
            "Share of greedy lists with a hit at each rank: how far down the list relevance reaches.", relevance,
        )  # fmt: skip
        self.rank_differences(names)
        self.rank_rewards()

    def rank_differences(self, names: Sequence[str]) -> None:
        """The tail figure: relevance per rank against the baseline, a panel a system."""
        found = [
            (system, differences)
            for system in self.held_against()
            if (differences := [d for name in names if (d := self.comparison.difference(system.label, name))])
        ]
        if not found:
            return
        figure, grid = _panels(len(found), 1.9)
        for axes, (system, differences) in zip(grid.flat, found, strict=False):
            look, x = self.looks[system.label], np.arange(1, len(differences) + 1)
            axes.axhline(0, color="#444444", linewidth=1)
            axes.fill_between(
                x,
                [d.low for d in differences],
                [d.high for d in differences],
                color=look.color,
                alpha=0.18,
                linewidth=0,
            )
            self.line(axes, system, x, [d.mean for d in differences])
            axes.set_title(_short(system.label, 30), fontsize=10)
            axes.set_xticks(_rank_ticks(len(x)))
        figure.supxlabel("rank", fontsize=10)
        figure.supylabel("difference in share of hits", fontsize=10)
        figure.suptitle(
            f"Relevance per rank minus {_short(self.study.baseline.label)}",
            fontsize=11,
            fontweight="bold",
            x=0.01,
            ha="left",
        )
        caption = (
            f"Relevance per rank minus that of {self.study.baseline.label}. Bands: {self.comparison.level:.0%} intervals for "
            "other conversations (these policies), of each rank for itself, not corrected for their number."
        )
        self.save("rank_difference", "ranks", caption, figure)

    def rank_rewards(self) -> None:
        """Reward per rank over training: a panel a system, ranks down, steps across."""
        tables = [(s, t) for s in self.study.trained if (t := rank_rewards(s.runs, self.study.n)) is not None]
        if not tables:
            return
        rules = {
            tuple(
                s.config.get(key)
                for key in ("reward.kind", "reward.gamma", "reward.position", "match._target_", "match.year_tolerance")
            )
            for s, _ in tables
        }
        top = max(float(np.nanmax(t)) for _, (_, t) in tables)
        bottom = min(float(np.nanmin(t)) for _, (_, t) in tables)
        figure, grid = _panels(len(tables), 2.1)
        meshes = []
        grid.flat[0].invert_yaxis()  # of all panels: they share it
        for axes, (system, (edges, table)) in zip(grid.flat, tables, strict=False):
            low, high = (bottom, top) if len(rules) == 1 else (float(np.nanmin(table)), float(np.nanmax(table)))
            mesh = axes.pcolormesh(
                edges, np.arange(0.5, len(table) + 1), np.ma.masked_invalid(table), cmap="viridis", vmin=low,
                vmax=high if high > low else low + 1, rasterized=True,
            )  # fmt: skip
            meshes.append(mesh)
            axes.grid(False)
            axes.set_title(_short(system.label, 30), fontsize=10)
            axes.set_yticks(_rank_ticks(len(table)))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            if len(rules) > 1:
                figure.colorbar(mesh, ax=axes)
        figure.supylabel("rank", fontsize=10)
        figure.supxlabel("RL step", fontsize=10)
        figure.suptitle("Reward per rank over training", fontsize=11, fontweight="bold", x=0.01, ha="left")
        if len(rules) == 1:
            figure.colorbar(meshes[-1], ax=grid, label="return of the rank", shrink=0.9)
        caption = "What each rank of the sampled lists earned over training, mean over seeds."
        if len(rules) > 1:
            caption += " The systems are paid by different returns, so each has its own scale."
        self.save("rank_reward", "ranks", caption, figure)

    def training(self) -> None:
        captions = {
            "kl": "Estimated by k3 on the sampled tokens; runs without a KL term have no curve.",
            "clip": "Share of tokens whose ratio was clipped: 0 throughout where each rollout is used for one step.",
            "zero_std": "Groups in which all lists (or ranks) earn the same teach nothing.",
            "seconds": "Wall clock: it says as much of the machine as of the algorithm.",
        }
        for measure in TRAINING:
            self.curves(measure, "training", captions.get(measure.key, ""), small=True)

    def curves(self, measure: Measure, section: str, caption: str, *, small: bool = False) -> None:
        found = [(s, c) for s in self.study.trained if (c := curve(s.runs, measure)) is not None]
        if not found:
            return
        cut = any(c.whole < len(c.steps) for _, c in found)

        def body(axes: Axes) -> None:
            for system, c in found:
                look, whole = self.looks[system.label], c.whole
                axes.plot(
                    c.steps[:whole], c.mean[:whole], color=look.color, linestyle=look.line, linewidth=1.8,
                    marker=look.marker if len(c.steps) <= _MARKED else None, markersize=4,
                )  # fmt: skip
                # From the last step that all seeds have, so that the line has no hole.
                rest = slice(max(0, whole - 1), None)
                if whole < len(c.steps):
                    axes.plot(c.steps[rest], c.mean[rest], color=look.color, linestyle=":", linewidth=1.4)
                if len(system.runs) > 1:
                    axes.fill_between(c.steps, c.low, c.high, color=look.color, alpha=0.15, linewidth=0)
            axes.set(title=measure.title, xlabel="RL step", ylabel=measure.unit)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            values = np.concatenate([np.concatenate([c.low, c.high]) for _, c in found])
            if values.min() >= 0 and values.min() < 0.5 * values.max():
                axes.set_ylim(bottom=0)
            if values.min() == values.max() == 0:
                axes.set_ylim(0, 1)

        if cut and not small:
            caption = f"{caption} Dotted: seeds that went on when others had ended.".strip()
        marked = all(len(c.steps) <= _MARKED for _, c in found)
        self.draw(measure.key, section, caption, body, systems=[s for s, _ in found], small=small, marked=marked)

    def shown(self) -> list[System]:
        """All systems but a zero-shot policy that hits nothing: a line along the axis."""
        return [
            system
            for system in self.study.systems
            if system.kind != "zero_shot" or np.nanmax(system.values(self.study.metric), initial=0) > 0
        ]

    def held_against(self) -> list[System]:
        """Systems of the figures of differences: popularity and zero-shot are so far off that no other could be seen."""
        others = [s for s in self.study.systems if s is not self.study.baseline]
        return [s for s in others if s.kind not in ("popularity", "zero_shot")]

    def line(self, axes: Axes, system: System, x: Sequence[float] | np.ndarray, y: Sequence[float]) -> None:
        look = self.looks[system.label]
        axes.plot(x, y, color=look.color, linestyle=look.line, marker=look.marker, markersize=4.5, linewidth=1.8)

    def draw(
        self,
        name: str,
        section: str,
        caption: str,
        body: Callable[[Axes], None],
        *,
        systems: Sequence[System] | None = None,
        small: bool = False,
        marked: bool = True,
    ) -> None:
        self.bodies[name] = body
        figure, axes = plt.subplots(figsize=SMALL if small else SIZE, layout="constrained")
        body(axes)
        self.legend(figure, self.shown() if systems is None else systems, small=small, marked=marked)
        self.save(name, section, caption, figure, small=small)

    def overview(self, names: Sequence[str]) -> None:
        """figures/overview.png: a study in one row, for a README or a slide; the report has the panels one by one."""
        bodies = [self.bodies[name] for name in names if name in self.bodies]
        if not bodies:
            return
        figure, grid = plt.subplots(
            1, len(bodies), figsize=(4.6 * len(bodies), 4.0), layout="constrained", squeeze=False
        )
        for axes, body in zip(grid.flat, bodies, strict=True):
            body(axes)
        self.legend(figure, self.shown(), widest=len(bodies))
        with replacing(self.folder / "overview.png") as scratch:
            figure.savefig(scratch, format="png", dpi=150)
        plt.close(figure)

    def legend(
        self, figure: Figure, systems: Sequence[System], *, small: bool = False, marked: bool = True, widest: int = 1
    ) -> None:
        """Below the panels, a line a system. widest: panels beside each other."""
        handles = [
            Line2D(
                [],
                [],
                color=s.color,
                linestyle=s.line,
                marker=s.marker if marked else None,
                markersize=4.5,
                linewidth=1.8,
            )
            for s in (self.looks[system.label] for system in systems)
        ]
        # A space before the name: Matplotlib leaves out of a legend what begins with an underscore.
        names = [" " + _short(system.label) for system in systems]
        fitting = (58 if small else 68) * widest // (max(map(len, names), default=1) + 6)
        figure.legend(
            handles, names, loc="outside lower center", ncols=max(1, min(4 * widest, len(names), fitting)), handlelength=1.5,
            columnspacing=1.2, fontsize=8 if small else 9,
        )  # fmt: skip

    def save(self, name: str, section: str, caption: str, figure: Figure, *, small: bool = False) -> None:
        with _closing(figure):
            with replacing(self.folder / f"{name}.png") as scratch:
                figure.savefig(scratch, format="png", dpi=150)
            figure.set_layout_engine("none")  # all is in its place: once is enough
            svg = io.BytesIO()
            figure.savefig(svg, format="svg", dpi=150, metadata={"Date": None})
        self.drawn.append(Drawn(name, section, caption, svg.getvalue(), small))


def _panels(count: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `count` panels with shared axes, `height` inches each; places that are left over are empty."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(SIZE[0], 0.9 + height * max(rows, 1.4)), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, count - columns) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, grid


def _rank_ticks(n: int) -> list[int]:
    return list(range(1, n + 1)) if n < 10 else [1, *range(5, n + 1, 5)]


def _bars(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths of error bars; 0 where there is no interval."""
    return np.nan_to_num(np.maximum([mean - low, high - mean], 0))


def _short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


@contextlib.contextmanager
def _closing(figure: Figure) -> Iterator[None]:
    try:
        yield
    finally:
        plt.close(figure)
