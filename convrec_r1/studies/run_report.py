"""The report of one run: table, differences, report.md, figure, and the metrics of summary.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convrec_r1.base.files import write_text
from convrec_r1.base.progress import console
from convrec_r1.base.tables import Column, Table, plain
from convrec_r1.base.visible import visible
from convrec_r1.evaluate.config import EvalConfig, cutoffs, metric_in_effect
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies.comparison import Comparison, Difference, differences_on, means_on
from convrec_r1.studies.figures import Drawer
from convrec_r1.studies.numbers import NONE, Writer
from convrec_r1.studies.run_files import Judged, Run, read_history
from convrec_r1.studies.systems import Study, evaluation_study
from convrec_r1.studies.tables import sentence

_QUALITY = {
    "catalog/valid": "in catalog",
    "list/duplicates": "repeats",
    "list/seen": "seen",
    "catalog/coverage": "coverage",
}


@dataclass(frozen=True)
class Wording:
    """What a report says besides its numbers."""

    title: str
    """Model and data."""
    seed: int | None = None
    """The run's seed. None: nothing was trained."""
    how: str = "greedy decoding"
    """How the lists were made."""
    remarks: Sequence[str] = ()
    """Sentences on the lists, for report.md."""
    note: str | None = None
    """A limit of what the numbers say."""
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Labels of users' metrics, as in summary.json."""


def report(
    folder: RunFolder, evaluations: Mapping[str, Evaluation], options: EvalConfig, wording: Wording, *, n: int
) -> dict[str, Any]:
    """Compare the systems of a run, print the result, write report.md and figures/run.png.

    Args:
        folder: Folder of the run, with the learning curves in metrics.jsonl.
        evaluations: Evaluations on the same conversations, by name of the system. The last one is the run's policy.
        options: `eval`: cut-offs, metric, split, level and resamples.
        wording: Title, seed, labels and remarks.
        n: Length of lists.

    Returns:
        Metrics, intervals and differences for summary.json.

    Raises:
        ValueError: The evaluations have different conversations.
    """
    *_, final = evaluations
    metric, ks = metric_in_effect(options, n), cutoffs(options.ks, n)
    ranking = [f"{family}@{k}" for family in ("ndcg", "recall") for k in ks]
    judged, history, seed = Judged(evaluations[final]), read_history(folder.metrics), wording.seed
    config = {"eval.split": options.split}
    run = Run(folder.path, config, {}, seed or 0, final, judged, history=history, trained=seed is not None)
    study = evaluation_study(evaluations, run, metric, n=n, write=Writer(wording.labels))
    comparison = _compare(study, tuple(dict.fromkeys([*ranking, metric])), options)
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    table = _table(study, comparison, ranking, summaries)
    facts = f"{len(study.ids)} conversations of the {study.split} split, lists of {n}, {wording.how}"
    notes = [wording.note] if wording.note else []
    sentences = [*notes, *(sentence(d, study.write) for d in comparison.differences[metric])]
    label = study.write.label
    own = [label(name) for name in study.write.foreign]
    chosen = dict.fromkeys([label(metric), "interval", label(f"recall@{ks[-1]}"), *_QUALITY.values(), *own])
    console.print(table.pick(*(name for name in chosen if name not in ("coverage", "seen"))).rich())
    console.print(*map(visible, (facts, *sentences)), sep="\n", highlight=False, markup=False)
    figure = Drawer(study, comparison).run(folder.figures / "run.png")
    interval = f"Interval: of {plain(label(metric))}, {options.level:.0%}, cluster bootstrap."
    head = f"# {plain(study.baseline.label)}, {plain(wording.title)}" + ("" if seed is None else f", seed {seed}")
    lines = [head, "", *table.markdown(), "", f"{facts}. {interval}", ""]
    lines += [f"- {plain(line)}" for line in (*wording.remarks, *sentences)]
    lines += ["", f"![Learning curves and comparison](figures/{figure.name})"]
    write_text(folder.path / "report.md", "\n".join(lines) + "\n")
    names = {system.label: system.kind for system in study.systems}
    return {
        "algo": final,
        "seed": seed,
        "split": options.split,
        "conversations": len(study.ids),
        "metrics": summaries,
        "labels": dict(wording.labels),
        "notes": notes,
        "intervals": {
            name: {m: _interval(comparison, system, m) for m in comparison.metrics} for system, name in names.items()
        },
        "paired": [_paired(d, names) for d in comparison.differences[metric]],
    }


def _compare(study: Study, metrics: tuple[str, ...], options: EvalConfig) -> Comparison:
    """Return the means of `metrics`, and the differences of all systems from the run's in the study's metric."""
    statistics = {"level": options.level, "n_resamples": options.resamples}
    pairs = [(study.baseline, system) for system in study.systems if system is not study.baseline]
    return Comparison(
        metrics=metrics,
        means={name: means_on(study, name, statistics) for name in metrics},
        differences={study.metric: differences_on(study, pairs, study.metric, statistics)},
        level=options.level,
        resamples=options.resamples,
    )


def _table(
    study: Study, comparison: Comparison, ranking: list[str], summaries: Mapping[str, Mapping[str, float]]
) -> Table:
    """Return a table with a row per system: ranking metrics, interval of the main one, list quality, users' metrics."""
    write = study.write
    shown = list(dict.fromkeys([*ranking, study.metric]))
    quality = [*_QUALITY, *write.foreign]
    columns = ["", *map(write.label, shown), "interval", *_QUALITY.values(), *map(write.label, write.foreign)]
    rows = []
    for system in study.systems:
        values = summaries[system.kind]
        main = comparison.mean(system.label, study.metric)
        rows.append(
            [
                system.label,
                *(write.number(values.get(name), name) for name in shown),
                write.span(main.low, main.high, study.metric) if main else NONE,
                *(write.number(values.get(name), name) for name in quality),
            ]
        )
    return Table(tuple(map(Column, columns)), rows, strong=len(rows) - 1)


def _interval(comparison: Comparison, system: str, metric: str) -> list[float | None]:
    mean = comparison.mean(system, metric)
    return [_finite(mean.low), _finite(mean.high)] if mean else [None, None]


def _paired(d: Difference, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a difference as plain values for summary.json."""
    numbers = {"mean": d.mean, "low": d.low, "high": d.high, "p_value": d.p, "effect_size": d.effect_size}
    entry: dict[str, Any] = {"against": names[d.baseline], "metric": d.metric}
    entry |= {name: _finite(value) for name, value in numbers.items()}
    return entry if math.isnan(d.p_holm) else entry | {"p_holm": d.p_holm}


def _finite(value: float) -> float | None:
    """Return the value, or None if it is not finite: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
