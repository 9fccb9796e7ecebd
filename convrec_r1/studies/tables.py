"""Tables, sentences and CSV files of the reports."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from convrec_r1.base.files import write_text
from convrec_r1.base.tables import Column, Table
from convrec_r1.evaluate.labels import GROUPS
from convrec_r1.studies.comparison import Comparison, Difference
from convrec_r1.studies.naming import differing_keys
from convrec_r1.studies.numbers import NONE, Writer, duration, effect_size, p_value
from convrec_r1.studies.run_files import Run
from convrec_r1.studies.systems import Study

THESE, OTHERS = "These policies, other conversations", "Another training, other conversations"
RANKS = "Ranks"
"""Group of metrics that are in figures and CSV files, and not in tables."""


def write_csv(study: Study, comparison: Comparison, folder: Path) -> None:
    """Write metrics.csv, differences.csv and runs.csv with all digits. A value that is not defined is empty."""
    for name, rows in (
        ("metrics", _mean_rows(study, comparison)),
        ("differences", _difference_rows(comparison)),
        ("runs", _run_rows(study)),
    ):
        cells = [{key: _plain(value) for key, value in row.items()} for row in rows]
        frame = pd.DataFrame(cells, dtype=object)  # keeps integers in a column with empty cells
        write_text(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))


def _mean_rows(study: Study, comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per system and metric. The last columns are seeds, and "untrained" for systems without seeds."""
    seeds = sorted({seed for system in study.systems for seed in system.seeds})
    last = [f"seed_{seed}" for seed in seeds] + ["untrained"] * any(system.fixed for system in study.systems)
    names = {system.label: [f"seed_{s}" for s in system.seeds] or ["untrained"] for system in study.systems}
    rows = []
    for m in _in_order(comparison.metrics, comparison.means):
        row = asdict(m)
        each = dict(zip(names[m.system], row.pop("per_seed"), strict=False))
        rows.append(row | {name: each.get(name) for name in last})
    return rows


def _difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per system and metric with the results of both tests, named as in `Difference`."""
    found = _in_order(comparison.metrics, comparison.differences)
    seeds = sorted({seed for d in found for seed in d.seeds})
    rows = []
    for d in found:
        row = asdict(d)
        each = dict(zip(row.pop("seeds"), row.pop("per_seed"), strict=False))
        rows.append(row | {f"seed_{seed}": each.get(seed) for seed in seeds})
    return rows


def _run_rows(study: Study) -> Iterable[dict[str, Any]]:
    """Yield a row per run: folder, training, the config keys in which runs differ, final metrics."""
    keys = differing_keys([run.identity for run in study.runs])
    for system in study.systems:
        for run in system.runs:
            steps, seconds = run.training_time
            at, why = run.stopped or (None, None)
            yield {
                "run": run.name,
                "folder": str(run.path),
                "system": system.label,
                "seed": run.seed,
                "commit": run.summary.get("git_sha"),
                "steps": steps,
                "training_seconds": seconds,
                "seconds": run.summary.get("seconds"),
                "resumed": run.resumed,
                "stopped_at": at,
                "stopped_why": why,
                **{key: run.identity.get(key) for key in keys},
                **dict(sorted(run.judged.evaluation.summary().items())),
            }


def _in_order(metrics: Sequence[str], found: dict[str, tuple]) -> list:
    return [entry for metric in metrics for entry in found[metric]]


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (bool, list, dict)) else value


def systems_table(study: Study, comparison: Comparison) -> Table:
    """Return the main table: mean of each system on the report's metric, and difference from the baseline."""
    metric, write = study.metric, study.write
    label = write.label(metric)
    columns = (
        Column("System"),
        Column("seeds"),
        Column("mean", label),
        Column("interval", label),
        Column("SD of seeds", label),
        *_difference_columns(f"Difference from {study.baseline.label}"),
    )
    rows = []
    for system in study.systems:
        mean, d = comparison.mean(system.label, metric), comparison.difference(system.label, metric)
        cells = [write.number(mean.mean, metric), write.span(mean.low, mean.high, metric)] if mean else [NONE, NONE]
        cells.append(write.number(mean.seed_std, metric) if mean else NONE)
        compared = _difference_cells(d, write)
        if system is study.baseline:
            compared[0] = "baseline"
        rows.append([system.label, str(len(system.seeds) or NONE), *cells, *compared])
    return Table(columns, rows, strong=study.systems.index(study.baseline))


def metrics_table(study: Study, comparison: Comparison) -> Table:
    """Return means and intervals of all systems on all metrics."""
    rows: list[list[str]] = []
    for group, metrics in metric_groups(study, comparison):
        rows.append([group])
        for metric in metrics:
            found = [comparison.mean(system.label, metric) for system in study.systems]
            rows.append([study.write.label(metric), *(_level(m, study.write) if m else NONE for m in found)])
    return Table((Column("Metric"), *(Column(system.label) for system in study.systems)), rows)


def _level(mean: Any, write: Writer) -> str:
    interval = write.span(mean.low, mean.high, mean.metric)
    return write.number(mean.mean, mean.metric) + ("" if interval == NONE else f"\n{interval}")


def differences_tables(study: Study, comparison: Comparison) -> list[tuple[str, Table]]:
    """Return for each group of metrics its name and a table of differences, a row per metric and system."""
    found = []
    for group, metrics in metric_groups(study, comparison):
        rows: list[list[str]] = []
        for metric in metrics:
            if comparison.differences[metric]:
                rows.append([study.write.label(metric)])
                rows += [[d.system, *_difference_cells(d, study.write)] for d in comparison.differences[metric]]
        if rows:
            found.append((group, Table((Column("Metric, system"), *_difference_columns("")), rows)))
    return found


def metric_groups(study: Study, comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the groups of metrics, with the metrics of each group."""
    by_group = [(group, [m for m in comparison.metrics if study.write.style(m).group == group]) for group in GROUPS]
    return [(group, names) for group, names in by_group if names and group != RANKS]


def _difference_columns(group: str) -> tuple[Column, ...]:
    return (
        Column("difference", group),
        Column("interval", THESE),
        Column("p (Holm)", THESE),
        Column("effect", THESE),
        Column("interval", OTHERS),
        Column("p, seeds too", OTHERS),
        Column("each seed", "", text=True),
    )


def _difference_cells(d: Difference | None, write: Writer) -> list[str]:
    if d is None:
        return [NONE] * 7
    signed = [write.signed(value, d.metric) for value in d.per_seed]
    each = [f"{value} s{seed}" for value, seed in zip(signed, d.seeds, strict=True)] if d.seeds else signed
    return [
        write.signed(d.mean, d.metric),
        write.span(d.low, d.high, d.metric, signs=True),
        p_value(d.p_holm),
        effect_size(d.effect_size),
        write.span(d.crossed_low, d.crossed_high, d.metric, signs=True),
        p_value(d.crossed_p_holm),
        ", ".join(each) or "no seed in common",
    ]


def config_table(study: Study) -> Table:
    """Return the table of config keys in which the trained systems differ."""
    columns = (Column("Key"), *(Column(system.label, text=True) for system in study.trained))
    return Table(columns, [[key, *values] for key, values in study.config_differences])


def runs_table(study: Study) -> Table:
    """Return the table of runs: steps, times, end, commit."""
    names = ("System", "seed", study.write.label(study.metric), "RL steps", "training", "total, last start")
    texts = ("how it ended", "commit", "run")
    rows = []
    for system in study.systems:
        for run in system.runs:
            steps, seconds = run.training_time
            planned = run.config.get("rl.steps")
            value = run.judged.evaluation.values(study.metric)[0]
            shown = NONE if steps is None else str(steps)
            if steps is not None and planned and steps != planned:
                shown += f" of {planned}"
            rows.append(
                [
                    system.label,
                    str(run.seed) if run.trained else NONE,
                    study.write.number(float(value.mean()) if len(value) else math.nan, study.metric),
                    shown,
                    duration(seconds),
                    duration(run.summary.get("seconds")),
                    _ending(run),
                    run.commit,
                    run.name,
                ]
            )
    return Table((*map(Column, names), *(Column(name, text=True) for name in texts)), rows)


def _ending(run: Run) -> str:
    text = "complete"
    if run.stopped:
        at, why = run.stopped
        text = f"stopped{'' if at is None else f' at step {at}'}: {why}"
    text += ", resumed" * run.resumed
    if run.collapses:
        more = f" (and {len(run.collapses) - 1} more)" if len(run.collapses) > 1 else ""
        text += f"; collapse at {run.collapses[0]}{more}"
    return " ".join(text.split())


def sentence(d: Difference, write: Writer) -> str:
    """Return a difference as text, with interval and p-value."""
    text = f"{d.system} \N{MINUS SIGN} {d.baseline}, {write.label(d.metric)}: {write.signed(d.mean, d.metric)}"
    if math.isnan(d.low):
        return f"{text} (one cluster: no interval)"
    text += f" ({write.span(d.low, d.high, d.metric, signs=True)}), p = {p_value(d.p_holm)} (Holm)"
    if not math.isnan(d.crossed_low):
        text += f"; with other trainings ({write.span(d.crossed_low, d.crossed_high, d.metric, signs=True)})"
    return text.replace("p = <", "p <")


def verdict(d: Difference, level: float) -> str:
    """Return the conclusion from both tests: other conversations, and another training."""
    limit = 1 - level + 1e-12  # 1 - 0.95 is slightly above 0.05
    if math.isnan(d.p_holm):
        return "no test was possible"
    if d.p_holm > limit:
        return "no difference between these policies is shown"
    if not d.seeds:  # neither was trained
        return "holds for these lists on other conversations"
    if math.isnan(d.crossed_p_holm):
        return (
            "holds for these policies on other conversations; with one seed there is no conclusion for another training"
        )
    if d.crossed_p_holm > limit:
        return "holds for these policies on other conversations, but is not shown for another training"
    return "holds on other conversations and for another training"


def findings(study: Study, comparison: Comparison) -> list[str]:
    """Return a sentence and a conclusion for each trained system, on the report's metric."""
    by_label = {system.label: system for system in study.systems}
    shown = [
        d
        for d in comparison.differences[study.metric]
        if not by_label[d.system].is_baseline or study.baseline.is_baseline
    ]
    return [f"{sentence(d, study.write)}: {verdict(d, comparison.level)}." for d in shown]
