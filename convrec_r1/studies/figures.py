"""Figures of the reports on studies and runs. A system has the same colour in all figures."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from convrec_r1.base import draw
from convrec_r1.evaluate.labels import Style, styles
from convrec_r1.studies.comparison import Comparison
from convrec_r1.studies.curves import REWARD, SFT_LOSS, TRAINING, Curve, Measure, curve, rank_rewards, validation
from convrec_r1.studies.numbers import short
from convrec_r1.studies.systems import Study, System

_WIDE, _SMALL = (5.6, 3.9), (4.2, 3.1)  # inches; text stays readable on a phone
_MARKED = 30  # largest number of points that are drawn with markers
_LONGEST = 38  # characters of a name in a legend
_OVERVIEW = ("validation", "ndcg_difference", "rank_relevance")
_OF_A_RUN = ("sft_loss", "reward", "validation", "levels", "rank_relevance")


@dataclass(frozen=True)
class Panel:
    """A figure with one panel."""

    name: str
    section: str
    """Section of the report: "results", "ranks" or "training"."""
    caption: str
    body: Callable[[Axes], None]
    """Draws the panel."""
    systems: Sequence[System]
    """Systems in the legend."""
    small: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    name: str
    """File name without extension."""
    section: str
    caption: str
    svg: bytes
    small: bool = False


class Drawer:
    """Draws the figures of one study. A metric that no run logged has no figure."""

    def __init__(self, study: Study, comparison: Comparison) -> None:
        self.study, self.comparison = study, comparison
        self.looks = system_styles(study)
        others = [system for system in study.systems if system is not study.baseline]
        # Popularity and zero-shot differ so much that the other differences would not be visible.
        self.compared = [system for system in others if system.kind not in ("popularity", "zero_shot")]
        # A zero-shot policy without hits would be drawn on the axis.
        self.shown = [s for s in study.systems if s.kind != "zero_shot" or np.nan_to_num(s.mean(study.metric)) > 0]

    def report(self, folder: Path) -> list[Drawn]:
        """Draw all figures as PNG in `folder`, and overview.png with the main ones in a row. Return them as SVG."""
        with draw.style():
            panels = [p for p in (*self.results(), self.relevance(), *self.training()) if p]
            drawn = [self._save(p.name, p.section, p.caption, self._single(p), folder, p.small) for p in panels]
            for name, caption, figure in (self._rank_differences(), self._rank_rewards()):
                if figure:
                    drawn.append(self._save(name, "ranks", caption, figure, folder))
            self._row([p for name in _OVERVIEW for p in panels if p.name == name], folder / "overview.png")
        return drawn

    def run(self, path: Path) -> Path:
        """Draw the figure of a run: training curves, comparison of the systems, relevance per rank. Return `path`."""
        with draw.style():
            panels = [
                self.curves(SFT_LOSS, "training", ""),
                *self.results(),
                self.levels(),
                self.relevance(),
            ]
            found = {panel.name: panel for panel in panels if panel}
            if "reward" in found:
                found.pop("sft_loss", None)
            self._row([found[name] for name in _OF_A_RUN if name in found], path)
        return path

    def results(self) -> list[Panel | None]:
        """Return learning curves, and ranking metrics at each cut-off."""
        label = self.study.write.label(self.study.metric)
        caption = (
            "Reward of the lists sampled in training (not greedy), smoothed by a moving mean. The band runs from the lowest to "
            "the highest seed."
        )
        if len({run.config.get("reward.sequence") for run in self.study.runs}) > 1:
            caption += " The runs differ in reward.sequence, so the levels of their curves cannot be compared."
        return [
            self.curves(
                validation(self.study.metric, label),
                "results",
                f"{label} of greedy lists on validation conversations during training, mean over seeds. The band runs from "
                "the lowest to the highest seed.",
            ),
            self.curves(REWARD, "results", caption),
            *(panel for family in ("ndcg", "recall") for panel in self.by_k(family)),
        ]

    def training(self) -> list[Panel | None]:
        """Return the curves of training: stability, lists, speed."""
        return [self.curves(measure, "training", measure.caption, small=True) for measure in TRAINING]

    def curves(self, measure: Measure, section: str, caption: str, *, small: bool = False) -> Panel | None:
        """Return the panel of a measure over training, with a line per system. None: no run logged it."""
        found = [(s, c) for s in self.study.trained if (c := curve(s.histories, measure)) is not None]
        if not found:
            return None

        def body(axes: Axes) -> None:
            for system, c in found:
                self._curve(axes, system, c)
            axes.set(title=measure.title, xlabel=measure.axis, ylabel=measure.unit)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            values = np.concatenate([np.concatenate([c.low, c.high]) for _, c in found])
            if values.min() >= 0 and values.min() < 0.5 * values.max():
                axes.set_ylim(bottom=0)
            if values.min() == values.max() == 0:
                axes.set_ylim(0, 1)

        if any(c.whole < len(c.steps) for _, c in found) and not small:
            caption = f"{caption} Dotted: longer runs, after the shortest run ended.".strip()
        marked = all(len(c.steps) <= _MARKED for _, c in found)
        return Panel(measure.key, section, caption, body, [s for s, _ in found], small, marked)

    def by_k(self, family: str) -> list[Panel]:
        """Return panels of a family of metrics by cut-off k: levels, and differences from the baseline."""
        names = [name for name in self.comparison.metrics if name.startswith(f"{family}@")]
        if len(names) < 2:
            return []
        ks = [int(name.partition("@")[2]) for name in names]
        label = self.study.write.label(names[0]).partition("@")[0]
        baseline = self.study.baseline.label

        def levels(axes: Axes) -> None:
            for system in self.shown:
                self._line(axes, system, ks, [system.mean(name) for name in names])
            axes.set(title=f"{label}@k", xlabel="k", ylabel=f"{label}@k", xticks=ks)
            axes.set_ylim(bottom=0)

        def differences(axes: Axes) -> None:
            axes.axhline(0, color="#444444", linewidth=1)
            for place, system in enumerate(self.compared):
                found = [self.comparison.difference(system.label, name) for name in names]
                points = np.array([(k, d.mean, d.low, d.high) for k, d in zip(ks, found, strict=True) if d])
                if len(points):
                    at, mean, low, high = points.T
                    # Small offsets keep the intervals of the systems apart.
                    at = at + (place - (len(self.compared) - 1) / 2) * (ks[-1] - ks[0]) * 0.012
                    self._line(axes, system, at, mean, yerr=draw.error_bars(mean, low, high))
            title = f"{label}@k minus {short(baseline, _LONGEST)}"
            axes.set(title=title, xlabel="k", ylabel="difference", xticks=ks)

        caption = (
            f"{label}@k minus {label}@k of {baseline}, with {self.comparison.level:.0%} intervals for other "
            "conversations (these policies). If the difference grows with k, it comes from the lower ranks of the list."
        )
        text = f"{label} at each cut-off, mean over seeds and conversations."
        return [
            Panel(f"{family}_at_k", "results", text, levels, self.shown),
            Panel(f"{family}_difference", "results", caption, differences, self.compared),
        ]

    def levels(self) -> Panel:
        """Return a bar chart of the report's metric, with the interval of each system."""
        means = [m for s in self.study.systems if (m := self.comparison.mean(s.label, self.study.metric))]
        label = self.study.write.label(self.study.metric)

        def body(axes: Axes) -> None:
            bounds = [(m.low, m.high) for m in means]
            colors = [self.looks[m.system].color for m in means]
            draw.bars(axes, [short(m.system, 14) for m in means], [m.mean for m in means], bounds, colors)
            axes.set(title=f"{label}, {self.study.split} split", ylabel=label)
            axes.tick_params(axis="x", labelsize=8)

        return Panel("levels", "results", "", body, self.study.systems)

    def relevance(self) -> Panel:
        """Return the panel of hits per rank."""
        ranks = range(1, self.study.n + 1)

        def body(axes: Axes) -> None:
            for system in self.shown:
                self._line(axes, system, ranks, [system.mean(f"rank/{k}/hit") for k in ranks])
            axes.set(title="Relevance per rank", xlabel="rank", ylabel="share of lists with a hit")
            axes.set_ylim(bottom=0)
            axes.set_xticks(_rank_ticks(self.study.n))

        caption = "Share of lists with a hit at each rank."
        return Panel("rank_relevance", "ranks", caption, body, self.shown)

    def _rank_differences(self) -> tuple[str, str, Figure | None]:
        """Return name, caption and figure of the differences per rank from the baseline, a panel per system."""
        names = [f"rank/{k}/hit" for k in range(1, self.study.n + 1)]
        found = [(s, [d for n in names if (d := self.comparison.difference(s.label, n))]) for s in self.compared]
        found = [(system, differences) for system, differences in found if differences]
        baseline = self.study.baseline.label
        caption = (
            f"Relevance per rank minus that of {baseline}. Bands: {self.comparison.level:.0%} intervals for other "
            "conversations (these policies), not corrected for the number of ranks."
        )
        if not found:
            return "rank_difference", caption, None
        title = f"Relevance per rank minus {short(baseline, _LONGEST)}"
        figure, grid = _grid(len(found), 1.9, title, "rank", "difference in share of hits")
        for axes, (system, differences) in zip(grid.flat, found, strict=False):
            x = np.arange(1, len(differences) + 1)
            axes.axhline(0, color="#444444", linewidth=1)
            low, high = [d.low for d in differences], [d.high for d in differences]
            axes.fill_between(x, low, high, color=self.looks[system.label].color, alpha=0.18, linewidth=0)
            self._line(axes, system, x, [d.mean for d in differences])
            axes.set_title(short(system.label, 30), fontsize=10)
            axes.set_xticks(_rank_ticks(len(x)))
        return "rank_difference", caption, figure

    def _rank_rewards(self) -> tuple[str, str, Figure | None]:
        """Return name, caption and figure of the reward per rank (y) and step (x), a panel per system."""
        caption = "Mean reward of each rank of the sampled lists over training, mean over seeds."
        tables = [(s, t) for s in self.study.trained if (t := rank_rewards(s.histories, self.study.n)) is not None]
        if not tables:
            return "rank_reward", caption, None
        apart = len({_reward_rule(system) for system, _ in tables}) > 1
        low, high = (f([f(t[~np.isnan(t)]) for _, (_, t) in tables]) for f in (min, max))
        figure, grid = _grid(len(tables), 2.1, "Reward per rank over training", "RL step", "rank")
        grid.flat[0].invert_yaxis()  # the panels share the axis
        mesh = None
        for axes, (system, (edges, table)) in zip(grid.flat, tables, strict=False):
            if apart:
                low, high = float(np.nanmin(table)), float(np.nanmax(table))
            top = high if high > low else low + 1
            ranks = np.arange(0.5, len(table) + 1)
            mesh = axes.pcolormesh(
                edges, ranks, np.ma.masked_invalid(table), cmap="viridis", vmin=low, vmax=top, rasterized=True
            )
            axes.grid(visible=False)
            axes.set_title(short(system.label, 30), fontsize=10)
            axes.set_yticks(_rank_ticks(len(table)))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            if apart:
                figure.colorbar(mesh, ax=axes)
        if apart:
            caption += " The systems have different rewards, so each has its own scale."
        elif mesh is not None:
            figure.colorbar(mesh, ax=grid, label="reward of the rank", shrink=0.9)
        return "rank_reward", caption, figure

    def _curve(self, axes: Axes, system: System, c: Curve) -> None:
        look, whole = self.looks[system.label], c.whole
        marker = look.marker if len(c.steps) <= _MARKED else None
        line = {"color": look.color, "linewidth": 1.8}
        axes.plot(c.steps[:whole], c.mean[:whole], linestyle=look.line, marker=marker, markersize=4, **line)
        if whole < len(c.steps):
            rest = slice(max(0, whole - 1), None)  # starts at the last complete point, so that the line has no gap
            axes.plot(c.steps[rest], c.mean[rest], linestyle=":", **line)
        if len(system.runs) > 1:
            axes.fill_between(c.steps, c.low, c.high, color=look.color, alpha=0.15, linewidth=0)

    def _line(self, axes: Axes, system: System, x, y, yerr=None) -> None:
        look = self.looks[system.label]
        axes.errorbar(
            x, y, yerr, color=look.color, linestyle=look.line, marker=look.marker, markersize=4.5, linewidth=1.8, capsize=3
        )  # fmt: skip

    def _single(self, panel: Panel) -> Figure:
        figure, grid = draw.panels(1, 1, _SMALL if panel.small else _WIDE)
        panel.body(grid[0, 0])
        self._legend(figure, panel.systems, small=panel.small, marked=panel.marked)
        return figure

    def _row(self, panels: Sequence[Panel], path: Path) -> None:
        """Draw the panels in one row with one legend, for a README or a slide."""
        if panels:
            figure, grid = draw.panels(1, len(panels), (4.4 * len(panels), 4.0))
            for axes, panel in zip(grid.flat, panels, strict=True):
                panel.body(axes)
            self._legend(figure, self.shown, widest=len(panels))
            draw.save(figure, path)

    def _legend(
        self, figure: Figure, systems: Sequence[System], *, small: bool = False, marked: bool = True, widest: int = 1
    ) -> None:
        """Draw the legend below the panels. widest: number of panels in a row."""
        handles = [
            Line2D([], [], color=s.color, linestyle=s.line, marker=s.marker if marked else None, markersize=4.5)
            for s in (self.looks[system.label] for system in systems)
        ]
        # The space is for names with a leading underscore: Matplotlib would leave them out of the legend.
        names = [" " + short(system.label, _LONGEST) for system in systems]
        fitting = (58 if small else 68) * widest // (max(map(len, names), default=1) + 6)
        columns = max(1, min(4 * widest, len(names), fitting))
        size = 8 if small else 9
        figure.legend(handles, names, loc="outside lower center", ncols=columns, columnspacing=1.2, fontsize=size)

    def _save(self, name: str, section: str, caption: str, figure: Figure, folder: Path, small: bool = False) -> Drawn:
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", dpi=150, metadata={"Date": None})
        figure.set_layout_engine("none")  # the layout is computed: saving again must not repeat it
        draw.save(figure, folder / f"{name}.png")
        return Drawn(name, section, caption, svg.getvalue(), small)


def system_styles(study: Study) -> dict[str, Style]:
    """Return the style of each system by its label."""
    kinds = [s.kind if s.is_baseline or s.kind == "sft" else "" for s in study.systems]
    return dict(zip([s.label for s in study.systems], styles(kinds), strict=True))


def _reward_rule(system: System) -> tuple:
    """Return the config values that the reward of a rank depends on."""
    keys = [key for key in sorted(system.config) if key.startswith(("reward.", "match."))]
    return tuple((key, repr(system.config[key])) for key in keys if key not in ("reward.name", "reward.sequence"))


def _grid(count: int, height: float, title: str, x: str, y: str) -> tuple[Figure, np.ndarray]:
    """Return a figure of `count` panels with shared axes, each `height` inches high."""
    columns = min(2, count)
    rows = -(-count // columns)
    size = (_WIDE[0], 0.9 + height * max(rows, 1.4))
    figure, grid = draw.panels(rows, columns, size, sharex=True, sharey=True)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, count - columns) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    return figure, grid


def _rank_ticks(n: int) -> list[int]:
    return list(range(1, n + 1)) if n < 10 else [1, *range(5, n + 1, 5)]
