"""Compare finished runs: report.html, CSV files and figures."""

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from convrec_r1 import __version__
from convrec_r1.base.files import write_text
from convrec_r1.base.progress import console
from convrec_r1.base.visible import visible
from convrec_r1.studies import tables
from convrec_r1.studies.comparison import Comparison, compare_systems
from convrec_r1.studies.config import CompareConfig
from convrec_r1.studies.examples import Example, choose_examples
from convrec_r1.studies.figures import Drawer, Drawn, system_styles
from convrec_r1.studies.run_files import find_runs
from convrec_r1.studies.study import read_study
from convrec_r1.studies.systems import Study

_DASHES = {"-": "", "--": "5 2.5", "-.": "5 2 1.5 2", ":": "1.5 2"}


def compare(
    patterns: str | Sequence[str] | None, folder: Path, options: CompareConfig, *, level: float, resamples: int
) -> Path:
    """Compare the runs that `patterns` match (task=compare). Arguments, result and errors: `compare_runs`."""
    found = [path for path in find_runs(patterns) if path.resolve() != Path(folder).resolve()]
    return compare_runs(found, folder, options, level=level, resamples=resamples)


def compare_runs(
    runs: Sequence[Path], folder: Path, options: CompareConfig, *, level: float = 0.95, resamples: int = 2000
) -> Path:
    """Write report.html, metrics.csv, differences.csv, runs.csv and figures/ into `folder`, and print the result.

    Args:
        runs: Run folders.
        folder: Folder of the report. report.html is written last: if it exists, the rest is complete.
        options: Baseline, metric and number of examples.
        level: Level of the intervals.
        resamples: Resamples of the bootstrap.

    Returns:
        Path of report.html.

    Raises:
        UserError: The runs cannot be compared (`read_study`).
    """
    folder = Path(folder)
    study = read_study(runs, baseline=options.baseline, metric=options.metric)
    comparison = compare_systems(study, level=level, resamples=resamples)
    tables.write_csv(study, comparison, folder)
    figures = Drawer(study, comparison).report(folder / "figures")
    report = folder / "report.html"
    write_text(report, study_html(study, comparison, figures, choose_examples(study, options.examples)))
    show(study, comparison, report)
    return report


def study_html(study: Study, comparison: Comparison, figures: Sequence[Drawn], examples: Sequence[Example]) -> str:
    """Return report.html, one file without scripts or links. All text from the runs is escaped."""
    environment = Environment(
        loader=PackageLoader("convrec_r1.studies"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda svg: f"data:image/svg+xml;base64,{b64encode(svg).decode()}"
    looks = system_styles(study)
    return environment.get_template("report.html.j2").render(
        study=study,
        comparison=comparison,
        tables=tables,
        version=__version__,
        figures={name: [f for f in figures if f.section == name] for name in ("results", "ranks", "training")},
        examples=examples,
        looks={label: {"color": look.color, "dash": _DASHES[look.line]} for label, look in looks.items()},
        level=f"{100 * comparison.level:g} %",
        metric=study.write.label(study.metric),
        commits=dict.fromkeys(run.commit for run in study.runs),
        data=", ".join(dict.fromkeys(str(run.config.get("data.name", "?")) for run in study.runs)),
    )


def _visible(value: Any) -> Any:
    """Return a string without control characters and bidirectional marks. Escaped text stays escaped."""
    return type(value)(visible(value)) if isinstance(value, str) else value


def show(study: Study, comparison: Comparison, report: Path) -> None:
    """Print the result within 80 columns."""
    table = tables.systems_table(study, comparison).pick("seeds", "mean", "difference", "p (Holm)", "p, seeds too")
    console.print(table.rich(f"{study.write.label(study.metric)}, differences from {study.baseline.label}"))
    lines = [
        f"{len(study.ids)} conversations of the {study.split} split. p (Holm): these policies on other conversations. p, seeds "
        "too: also with another training (needs two seeds). Both are corrected by Holm.",
        *(f"Note: {note}" for note in study.notes),
        *(f"Left out: {path}: {reason}" for path, reason in study.left_out),
    ]
    console.print(*map(visible, lines), sep="\n", highlight=False, markup=False)
    console.print(f"Report: {report}", highlight=False, markup=False, soft_wrap=True)
