"""Runs side by side: report.html, CSV files and figures, made from the files that the runs left."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from convrec_r1.base.files import write_text
from convrec_r1.base.progress import console
from convrec_r1.base.visible import visible
from convrec_r1.config.schema import Config
from convrec_r1.evaluate.labels import metric_label
from convrec_r1.studies.comparison import Comparison, compare_systems
from convrec_r1.studies.config import CompareConfig
from convrec_r1.studies.examples import choose_examples
from convrec_r1.studies.html import headline, number, p_value, signed, study_html
from convrec_r1.studies.run_files import find_runs
from convrec_r1.studies.study import Study, read_study
from convrec_r1.studies.study_figures import study_figures
from convrec_r1.studies.study_tables import write_tables

_log = logging.getLogger(__name__)


def compare(cfg: Config, folder: Path) -> Path:
    """task=compare: the runs that `cfg.runs` names, into `folder`. Returns the report's path.

    UserError where there is nothing to compare, and for what `read_study` refuses.
    """
    found = [path for path in find_runs(cfg.runs) if path.resolve() != Path(folder).resolve()]
    return compare_runs(found, folder, cfg.compare, level=cfg.eval.level, resamples=cfg.eval.resamples)


def compare_runs(
    runs: Sequence[Path], folder: Path, options: CompareConfig, *, level: float = 0.95, resamples: int = 2000
) -> Path:
    """Compare the runs in the folders `runs`, write report.html, metrics.csv, differences.csv, runs.csv and figures/
    into `folder`, show the result. Returns the report's path; it is written last of all, so it stands for the whole.
    """
    folder = Path(folder)
    study = read_study(runs, baseline=options.baseline, metric=options.metric)
    comparison = compare_systems(study, level=level, resamples=resamples)
    write_tables(study, comparison, folder)
    figures = study_figures(study, comparison, folder / "figures")
    examples = choose_examples(study, options.examples)
    report = folder / "report.html"
    write_text(report, study_html(study, comparison, figures, examples))
    show(study, comparison, report)
    return report


def show(study: Study, comparison: Comparison, report: Path) -> None:
    """The headline on the terminal, within 80 columns."""
    table = Table()
    table.add_column("", overflow="fold", max_width=24)
    for name in ("seeds", metric_label(study.metric), "difference", "p", "p, seeds too"):
        table.add_column(name, justify="right")
    for system, mean, d in headline(study, comparison):
        table.add_row(
            escape(system.label),
            str(len(system.seeds) or ""),
            number(mean.mean, study.metric) if mean else "",
            signed(d.mean, study.metric) if d else "baseline" if system is study.baseline else "",
            p_value(d.p_holm) if d else "",
            p_value(d.crossed_p_holm) if d else "",
            style="bold" if system is study.baseline else "",
        )
    console.print(table)
    console.print(
        f"{len(study.ids)} conversations of the {study.split} split; differences from {study.baseline.label}. p: these "
        "policies on other conversations; p, seeds too: another training as well (needs two seeds). Both after Holm.",
        highlight=False, markup=False,
    )  # fmt: skip
    for note in study.notes:
        console.print(visible(f"Note: {note}"), highlight=False, markup=False)
    for entry in study.left_out:
        console.print(visible(f"Left out: {entry.path}: {entry.reason}"), highlight=False, markup=False)
    console.print(f"Report: {report}", highlight=False, markup=False, soft_wrap=True)
