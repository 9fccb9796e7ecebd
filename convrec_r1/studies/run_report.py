"""The end of a run: a table of systems, paired differences, report.md, a figure, and the numbers of summary.json."""

import math
from typing import Any

from rich.markup import escape
from rich.table import Table

from convrec_r1.base.files import read_jsonl, write_text
from convrec_r1.base.progress import console
from convrec_r1.config.schema import Config
from convrec_r1.evaluate.labels import LABELS
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.evaluate.statistics import cluster_bootstrap, holm, paired_cluster_bootstrap
from convrec_r1.run.folder import RunFolder
from convrec_r1.studies import markdown
from convrec_r1.studies.figures import run_figure
from convrec_r1.studies.markdown import plain

Systems = dict[str, Evaluation]

OTHERS = {
    "catalog/valid": "in catalog",
    "list/duplicates": "repeats",
    "list/seen": "seen",
    "catalog/coverage": "coverage",
}


def report(cfg: Config, folder: RunFolder, systems: Systems) -> dict[str, Any]:
    """Compare the systems, show and write the result. The last system is the one this run trained."""
    final = list(systems)[-1]
    ranking = [f"{metric}@{k}" for metric in ("ndcg", "recall") for k in cfg.ks]
    key = cfg.metric
    options = {"n_resamples": cfg.eval.resamples, "level": cfg.eval.level}
    metrics = {name: evaluation.summary() for name, evaluation in systems.items()}
    intervals = {
        name: {metric: _interval(evaluation, metric, options) for metric in ranking}
        for name, evaluation in systems.items()
    }
    paired = _paired(systems, final, key, options)
    rows = [_cells(name, metrics[name], intervals[name][key], ranking) for name in systems]
    header = ["", *ranking, "interval", *OTHERS.values()]
    conversations = len(systems[final])
    caption = f"{conversations} conversations of the {cfg.eval.split} split, lists of {cfg.n}, greedy decoding"
    differences = [_sentence(key, final, p) for p in paired]
    _show(header, rows, {key, "interval", key.replace("ndcg", "recall"), *OTHERS.values()} - {"coverage"})
    console.print(caption, *differences, sep="\n", highlight=False, markup=False)
    figure = run_figure(folder.figures / "run.png", read_jsonl(folder.metrics), systems, intervals, key)
    write_text(folder.path / "report.md", _markdown(cfg, header, rows, caption, differences, figure.name))
    return {
        "algo": final,
        "seed": cfg.seed,
        "split": cfg.eval.split,
        "conversations": conversations,
        "metrics": metrics,
        "intervals": intervals,
        "paired": paired,
    }


def _interval(evaluation: Evaluation, metric: str, options: dict) -> list[float | None]:
    values, clusters, _ = evaluation.values(metric)
    found = cluster_bootstrap(values, clusters, **options)
    return [_finite(found.low), _finite(found.high)]


def _paired(systems: Systems, final: str, metric: str, options: dict) -> list[dict[str, Any]]:
    """The trained system against each other one, on the same conversations; p-values after Holm."""
    a, clusters, ids = systems[final].values(metric)
    found = []
    for name, evaluation in systems.items():
        if name == final:
            continue
        b, _, other_ids = evaluation.values(metric)
        if ids != other_ids:
            raise ValueError(f"{final} and {name} were not evaluated on the same conversations")
        d = paired_cluster_bootstrap(a, b, clusters, **options)
        found.append({"against": name, "metric": metric} | {k: _finite(v) for k, v in d._asdict().items()})
    tested = [entry for entry in found if entry["p_value"] is not None]
    for entry, p in zip(tested, holm([entry["p_value"] for entry in tested]) if tested else [], strict=True):
        entry["p_holm"] = float(p)
    return found


def _finite(value: float) -> float | None:
    """JSON has no NaN: a number that does not exist (one cluster has no interval) is null."""
    return float(value) if math.isfinite(value) else None


def _cells(name: str, metrics: dict, interval: list, ranking: list[str]) -> list[str]:
    low, high = interval
    return [
        LABELS.get(name, name),
        *(f"{metrics[metric]:.4f}" for metric in ranking),
        "" if low is None else f"{low:.3f}-{high:.3f}",
        *(f"{metrics[m]:.1%}" if m.startswith("catalog") else f"{metrics[m]:.2f}" for m in OTHERS),
    ]


def _sentence(metric: str, final: str, entry: dict[str, Any]) -> str:
    who = f"{LABELS.get(final, final)} - {LABELS.get(entry['against'], entry['against'])}"
    text = f"{metric}, {who}: {entry['mean']:+.4f}"
    if entry["low"] is None:
        return f"{text} (one cluster: no interval)"
    return f"{text} [{entry['low']:+.4f}, {entry['high']:+.4f}], p = {entry['p_holm']:.4f} (Holm)"


def _show(header: list[str], rows: list[list[str]], chosen: set[str]) -> None:
    """On the terminal the columns of `chosen` only, so that it fits 80 characters; report.md has them all."""
    shown = [i for i, name in enumerate(header) if i == 0 or name in chosen]
    table = Table()
    for i in shown:
        table.add_column(header[i], justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(row[i]) for i in shown), style="bold" if row is rows[-1] else "")
    console.print(table)


def _markdown(
    cfg: Config, header: list[str], rows: list[list[str]], caption: str, differences: list[str], figure: str
) -> str:
    lines = [
        f"# {plain(rows[-1][0])}, {plain(cfg.model.name)} on {plain(cfg.data.name)}, seed {cfg.seed}",
        "",
        *markdown.table(header, rows),
        "",
        f"{caption}. Intervals: {cfg.eval.level:.0%}, cluster bootstrap.",
        "",
        *(f"- {plain(line)}" for line in differences),
        "",
        f"![Learning curves and comparison](figures/{figure})",
    ]
    return "\n".join(lines) + "\n"
