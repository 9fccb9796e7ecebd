"""report.html: one file that needs nothing else, no network and no script. Everything that comes from a run is escaped."""

import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from convrec_r1 import __version__
from convrec_r1.base.visible import visible
from convrec_r1.evaluate.labels import GROUPS, Style, metric_label, metric_style
from convrec_r1.studies.comparison import Comparison, Difference, Mean
from convrec_r1.studies.examples import Example
from convrec_r1.studies.study import Study, System
from convrec_r1.studies.study_figures import Drawn, system_styles
from convrec_r1.studies.study_tables import training_time

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_DASHES = {"-": "", "--": "5 2.5", "-.": "5 2 1.5 2", ":": "1.5 2"}
_SMALLEST_P = 0.001


def study_html(study: Study, comparison: Comparison, figures: Sequence[Drawn], examples: Sequence[Example]) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=PackageLoader("convrec_r1.studies"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_still,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = dict(zip([s.label for s in study.systems], system_styles(study), strict=True))
    environment.filters |= {
        "number": number,
        "signed": signed,
        "p": p_value,
        "metric": metric_label,
        "span": span,
        "data_uri": lambda svg: f"data:image/svg+xml;base64,{b64encode(svg).decode()}",
        "look": lambda system: look(looks[system]),
        "duration": duration,
    }
    template = environment.get_template("report.html.j2")
    return template.render(
        study=study,
        comparison=comparison,
        version=__version__,
        figures={section: [f for f in figures if f.section == section] for section in ("results", "ranks", "training")},
        examples=examples,
        headline=headline(study, comparison),
        summary=sentences(study, comparison),
        groups=metric_groups(comparison),
        runs=run_rows(study),
        n_clusters=int(study.clusters.max()) + 1,
        absent=NONE,
        data=", ".join(dict.fromkeys(str(run.config.get("data.name", "?")) for run in study.runs)),
    )


def _still(value: Any) -> Any:
    """A text without characters that act on a terminal or turn the line around; what is escaped stays so."""
    return type(value)(visible(value)) if isinstance(value, str) else value


def headline(study: Study, comparison: Comparison) -> list[tuple[System, Mean | None, Difference | None]]:
    """Each system with its mean on the report's metric and its difference from the baseline."""
    metric = study.metric
    return [(s, comparison.mean(s.label, metric), comparison.difference(s.label, metric)) for s in study.systems]


def sentences(study: Study, comparison: Comparison) -> list[dict[str, Any]]:
    """What the tests say of each trained system, in words; the table has the rest."""
    found = []
    for system, _, d in headline(study, comparison):
        if d and not (system.is_baseline and not study.baseline.is_baseline):
            found.append({"difference": d, "verdict": verdict(d, comparison.level)})
    return found


def verdict(d: Difference, level: float) -> str:
    """Two questions, two answers: would it hold on other conversations, and with another training?"""
    limit = 1 - level + 1e-12  # 1 - 0.95 is a hair above 0.05
    if math.isnan(d.p_holm):
        return "no test was possible"
    if d.p_holm > limit:
        return "no difference is shown, not even between these policies"
    if math.isnan(d.crossed_p_holm):
        return "holds for these policies on other conversations; with one seed nothing can be said of another training"
    if d.crossed_p_holm > limit:
        return "holds for these policies on other conversations, but is within what another training could change"
    return "holds on other conversations and for another training"


def metric_groups(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Metrics of the tables by group; hits per rank stand in a figure and in the CSV files."""
    groups = [(group, [m for m in comparison.metrics if metric_style(m).group == group]) for group in GROUPS]
    return [(group, names) for group, names in groups if names and group != "Ranks"]


def run_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for system in study.systems:
        for run in system.runs:
            steps, seconds = training_time(run)
            planned = run.config.get("rl.steps")
            value = run.judged.evaluation.values(study.metric)[0]
            rows.append(
                {
                    "run": run,
                    "system": system,
                    "steps": steps,
                    "planned": planned,
                    "seconds": seconds,
                    "value": float(value.mean()) if len(value) else math.nan,
                }
            )
    return rows


def number(value: float, metric: str = "") -> str:
    """A level of `metric`, with the digits that are worth reading."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if metric and metric_style(metric).percent:
        return f"{100 * value:.1f} %"
    return f"{value:.{_digits(metric)}f}".replace("-", MINUS)


def signed(value: float, metric: str = "") -> str:
    """A difference of `metric`, always with its sign."""
    if value is None or not math.isfinite(value):
        return number(value if value is not None else math.nan)
    if metric and metric_style(metric).percent:
        written = f"{100 * value:+.1f}"
    else:
        written = f"{value:+.{_digits(metric)}f}"
    if not written.strip("+-0."):
        written = written[1:]  # no sign before a zero
    return written.replace("-", MINUS)


def span(low: float, high: float, metric: str = "", signs: bool = False) -> str:
    """An interval."""
    if math.isnan(low) or math.isnan(high):
        return NONE
    write = signed if signs else number
    ends = [write(low, metric).removesuffix(" %"), write(high, metric).removesuffix(" %")]
    return f"{ends[0]} to {ends[1]}"


def p_value(p: float) -> str:
    if math.isnan(p):
        return NONE
    return f"< {_SMALLEST_P}" if p < _SMALLEST_P else f"{p:.3f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def look(style: Style) -> dict[str, str]:
    return {"color": style.color, "dash": _DASHES[style.line]}


def _digits(metric: str) -> int:
    return 2 if metric.startswith(("list/", "popularity/")) else 4
