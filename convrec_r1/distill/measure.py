"""The numbers of the card: what each stage's lists are worth on held-out conversations, and their popularity bias."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convrec_r1 import __version__, lists
from convrec_r1.data import Conversation, Dataset
from convrec_r1.distill.adjust import Adjustment
from convrec_r1.distill.config import TeacherConfig, label
from convrec_r1.distill.pipeline import Setup, Stage1
from convrec_r1.evaluate.popularity import SEGMENTS, Popularity
from convrec_r1.evaluate.scoring import Evaluation
from convrec_r1.evaluate.statistics import cluster_bootstrap, holm, paired_cluster_bootstrap


@dataclass(frozen=True)
class Measure:
    """How lists are measured."""

    score: Callable[[Sequence[str], Sequence[Conversation]], Evaluation]
    """Scores lists as a policy's lists are scored."""
    ks: list[int]
    metric: str
    """The metric that stages are compared by, such as ndcg@10."""
    resamples: int
    level: float


def evaluate_stages(found: Stage1, data: Dataset, measure: Measure) -> dict[str, Evaluation]:
    """Score each stage's lists of the held-out conversations."""
    held_out = found.conversations[found.train :]
    if not held_out:
        return {}
    items = list(data.catalog)
    texts = {"as_said": found.raw.texts[found.train :]}
    for stage, places in found.stages.items():
        texts[stage] = [lists.format(items[at] for at in row if at >= 0) for row in places[found.train :]]
    return {stage: measure.score(written, held_out) for stage, written in texts.items()}


def card_values(
    setup: Setup,
    teacher: TeacherConfig,
    found: Stage1,
    popularity: Popularity,
    evaluations: Mapping[str, Evaluation],
    measure: Measure,
) -> dict[str, Any]:
    """Return the values of card.json, except for what was asked and how long it took."""
    raw, adjustment = found.raw, found.adjustment
    entries = np.concatenate([np.empty(0, dtype=np.int64), *raw.lists])
    in_training = entries[: sum(map(len, raw.lists[: found.train]))]
    popular = {stage: skew(places[: found.train], popularity) for stage, places in found.stages.items()}
    popular["matched"] = skew(found.matches.index[in_training], popularity)  # seen items included
    popular["wanted"] = skew(np.repeat(np.arange(len(popularity.items)), popularity.counts), popularity)
    return {
        "version": __version__,
        "distill": setup.distill.name,
        "data": setup.data.name,
        "n": setup.n,
        "ks": measure.ks,
        "metric": measure.metric,
        "level": measure.level,
        "teacher": {"name": teacher.name, "model": teacher.model},
        "embedder": label(setup.embedder) if setup.distill.remap.enabled else "none",
        "conversations": {"train": found.train, "held_out": len(found.conversations) - found.train},
        "stages": found.seconds,
        "raw": {
            "answers": len(raw.texts),
            "empty": sum(not len(ids) for ids in raw.lists),
            "lines": sum(len(lists.lines(text)) for text in raw.texts),
            "entries": len(entries),
            "items": len(raw.items),
        },
        "matches": found.matches.shares(entries),
        "metadata": found.metadata,
        "reflect": asdict(found.judged) if found.judged else None,
        "adjust": adjustment
        and {
            "strength": adjustment.strength,
            "table": [row._asdict() for row in found.adjust_table],
            "iterations": adjustment.iterations,
            "converged": adjustment.converged,
            "w": np.percentile(adjustment.w, [5, 50, 95]).tolist(),
            "b": np.percentile(adjustment.b, [5, 50, 95]).tolist(),
        },
        "popularity": popular,
        "held_out": {
            stage: {"metrics": evaluation.summary(), "intervals": _intervals(evaluation, measure)}
            for stage, evaluation in evaluations.items()
        },
        "paired": _steps(evaluations, measure),
    }


def skew(places: np.ndarray, popularity: Popularity) -> dict[str, float]:
    """Return the popularity statistics of recommended items, given as places in the catalog (any shape; -1: none):

    head, mid, tail   share of the entries in each segment (evaluate.Popularity)
    mean_rank         mean popularity rank of the entries, 1 the most popular
    coverage          share of the catalog that occurs
    gini              of the counts of the catalog's items: 0 if all occur equally often, near 1 if only one occurs.
                      With counts x_(1) <= ... <= x_(C):  sum_i (2i - C - 1) x_(i) / (C sum_i x_(i))
    distance          total variation between the entries' distribution over items and that of the training ground truths,
                      1/2 sum_j |p_j - q_j|: 0 if items occur as often as users want them, 1 if nothing is shared

    Empty without entries. Without known interactions: no segments, mean_rank or distance.
    """
    entries = places[places >= 0]
    if not entries.size:
        return {}
    size = len(popularity.items)
    counts = np.bincount(entries, minlength=size).astype(np.float64)
    order = np.arange(1, size + 1)
    found = {
        "coverage": float((counts > 0).mean()),
        "gini": float(((2 * order - size - 1) * np.sort(counts)).sum() / (size * counts.sum())),
    }
    if popularity.total:
        segments = np.bincount(popularity.segments[entries], minlength=len(SEGMENTS)) / entries.size
        found |= dict(zip(SEGMENTS, map(float, segments), strict=True))
        found["mean_rank"] = float(popularity.ranks[entries].mean())
        found["distance"] = float(np.abs(counts / counts.sum() - popularity.counts / popularity.total).sum() / 2)
    return found


def adjusted_items(adjustment: Adjustment, popularity: Popularity) -> list[dict[str, Any]]:
    """Return w and b of each catalog item, and how often users wanted it in training."""
    columns = (popularity.items, popularity.counts, adjustment.w, adjustment.b)
    return [
        {"title": item.title, "year": item.year, "wanted": int(count), "w": float(w), "b": float(b)}
        for item, count, w, b in zip(*columns, strict=True)
    ]


def score_parts(found: Stage1, data: Dataset) -> Iterator[dict[str, Any]]:
    """Yield a row for each conversation: the items of its last list, and the parts of each one's score."""
    items, stage = list(data.catalog), list(found.stages)[-1]
    for row, conversation in enumerate(found.conversations):
        named = found.matches.index[found.raw.lists[row]].tolist()
        listed = [
            {
                "item": str(items[place]),
                "teacher_rank": named.index(place) + 1 if place in named else None,
                **{name: round(float(values[row, column]), 5) for name, values in found.parts.items()},
            }
            for column, place in enumerate(found.chosen[row].tolist())
            if place >= 0
        ]
        wanted = [str(item) for item in conversation.ground_truth]
        yield {"id": conversation.id, "split": conversation.split, "stage": stage, "wanted": wanted, "list": listed}


def _intervals(evaluation: Evaluation, measure: Measure) -> dict[str, list[float | None]]:
    found = {}
    for name in (f"{stem}@{k}" for stem in ("ndcg", "recall") for k in measure.ks):
        values, clusters, _ = evaluation.values(name)
        interval = cluster_bootstrap(values, clusters, n_resamples=measure.resamples, level=measure.level)
        found[name] = [_finite(interval.low), _finite(interval.high)]
    return found


def _steps(evaluations: Mapping[str, Evaluation], measure: Measure) -> list[dict[str, Any]]:
    """Compare each stage with the one before it on the same conversations, with Holm's correction."""
    steps = []
    for before, stage in itertools.pairwise(evaluations):
        a, clusters, _ = evaluations[stage].values(measure.metric)
        b, _, _ = evaluations[before].values(measure.metric)
        found = paired_cluster_bootstrap(a, b, clusters, n_resamples=measure.resamples, level=measure.level)
        steps.append({"stage": stage, "against": before} | {k: _finite(v) for k, v in found._asdict().items()})
    tested = [step for step in steps if step["p_value"] is not None]
    for step, p in zip(tested, holm([step["p_value"] for step in tested]), strict=True):
        step["p_holm"] = float(p)
    return steps


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
