"""metrics.csv, differences.csv and runs.csv: all numbers of a comparison, for other tools."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convrec_r1.base.files import write_text
from convrec_r1.studies.comparison import Comparison
from convrec_r1.studies.naming import differing_keys
from convrec_r1.studies.run_files import Run
from convrec_r1.studies.study import Study


def write_tables(study: Study, comparison: Comparison, folder: Path) -> list[Path]:
    """A number that does not exist is an empty cell; texts are in full."""
    tables = {
        "metrics.csv": metrics_table(study, comparison),
        "differences.csv": differences_table(comparison),
        "runs.csv": runs_table(study),
    }
    for name, rows in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
        write_text(folder / name, text.getvalue())
    return [folder / name for name in tables]


def metrics_table(study: Study, comparison: Comparison) -> Iterable[Sequence[Any]]:
    """A row a system and metric; a column a seed at the end, "untrained" for what has none."""
    seeds = sorted({seed for system in study.systems for seed in system.seeds})
    untrained = any(system.fixed for system in study.systems)
    yield [
        "system", "metric", "mean", "low", "high", "crossed_low", "crossed_high", "seed_std", "conversations",
        *(f"seed_{seed}" for seed in seeds), *(["untrained"] if untrained else []),
    ]  # fmt: skip
    of_system = {system.label: system.seeds for system in study.systems}
    for metric in comparison.metrics:
        for m in comparison.means[metric]:
            each = dict(zip(of_system[m.system] or (None,), m.per_seed, strict=True))
            yield [
                m.system, metric, m.mean, m.low, m.high, m.crossed_low, m.crossed_high, m.seed_std, m.conversations,
                *(each.get(seed) for seed in seeds), *([each.get(None)] if untrained else []),
            ]  # fmt: skip


def differences_table(comparison: Comparison) -> Iterable[Sequence[Any]]:
    """A row a system and metric, with all numbers of both tests; the columns are named as in comparison.Difference."""
    columns = (
        "mean", "low", "high", "p", "p_holm", "effect_size", "crossed_low", "crossed_high", "crossed_p", "crossed_p_holm",
        "df", "conversation_variance", "seed_variance", "paired_seeds", "conversations",
    )  # fmt: skip
    seeds = sorted({seed for found in comparison.differences.values() for d in found for seed in d.seeds})
    yield ["system", "baseline", "metric", *columns, *(f"seed_{seed}" for seed in seeds)]
    for metric in comparison.metrics:
        for d in comparison.differences[metric]:
            each = dict(zip(d.seeds, d.per_seed, strict=False))
            yield [
                d.system, d.baseline, metric, *(getattr(d, name) for name in columns), *(each.get(seed) for seed in seeds)
            ]  # fmt: skip


def runs_table(study: Study) -> Iterable[Sequence[Any]]:
    """A row a run: where it is, how it went, the config keys in which runs differ, and its final metrics."""
    runs = study.runs
    keys = differing_keys([run.identity for run in runs])
    summaries = [run.judged.evaluation.summary() for run in runs]
    names = sorted({name for summary in summaries for name in summary})
    yield [
        "run", "folder", "system", "seed", "commit", "steps", "training_seconds", "seconds", "resumed", "stopped_at",
        "stopped_why", *keys, *names,
    ]  # fmt: skip
    labels = {run.path: system.label for system in study.systems for run in system.runs}
    for run, summary in zip(runs, summaries, strict=True):
        steps, training = training_time(run)
        at, why = run.stopped or (None, None)
        yield [
            run.name, str(run.path), labels[run.path], run.seed, run.summary.get("git_sha"), steps, training,
            run.summary.get("seconds"), run.resumed, at, why, *(_plain(run.identity.get(key)) for key in keys),
            *(summary.get(name) for name in names),
        ]  # fmt: skip


def training_time(run: Run) -> tuple[int | None, float | None]:
    """Last RL step, and the seconds that its steps took together, over every start of the run."""
    steps, seconds = run.series("train", "time/step")
    return (int(steps[-1]), round(float(seconds.sum()), 3)) if len(steps) else (None, None)


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).lower() if isinstance(value, bool) else value
