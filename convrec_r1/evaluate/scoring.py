"""From the texts a policy wrote to the numbers of a report: one record a conversation, and their summary."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation
from convrec_r1.evaluate.list_quality import (
    catalog_coverage,
    catalog_indices,
    list_quality,
    mean_popularity_rank,
    parsed_lines,
    segment_recall,
)
from convrec_r1.evaluate.metrics import Ideal, per_list_metrics
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.lists import Item, fold
from convrec_r1.matching import Matching
from convrec_r1.reward import relevance
from convrec_r1.reward.rank import Position


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation's answer and what it is worth."""

    id: str
    cluster: str
    text: str
    n_relevant: int
    hits: tuple[int, ...]
    """Relevance of each rank, 0 or 1."""
    covered: tuple[int, ...]
    """Places in the catalog of the distinct items recommended within the first n ranks."""
    metrics: dict[str, float]
    """By name. A metric that this sample does not define (recall_head@20 without a popular ground truth) is absent."""


@dataclass(frozen=True)
class Evaluation:
    """The scored samples of one run on one split. The summary is a function of the set of samples: their order, and
    how they were cut into batches, change nothing, to the last bit."""

    samples: tuple[Sample, ...]
    catalog_size: int

    def __len__(self) -> int:
        return len(self.samples)

    def summary(self) -> dict[str, float]:
        """Each metric's mean over the samples in which it is defined, `rank/<k>/hit`, the share of samples with a hit
        at rank k, and `catalog/coverage`. Empty without samples."""
        if not self.samples:
            return {}
        names = dict.fromkeys(name for sample in self.samples for name in sample.metrics)
        summary = {name: _mean([s.metrics[name] for s in self.samples if name in s.metrics]) for name in sorted(names)}
        for rank in range(max(len(sample.hits) for sample in self.samples)):
            hits = sum(sample.hits[rank] for sample in self.samples if rank < len(sample.hits))
            summary[f"rank/{rank + 1}/hit"] = hits / len(self.samples)
        summary["catalog/coverage"] = catalog_coverage((s.covered for s in self.samples), self.catalog_size)
        return summary

    def values(self, name: str) -> tuple[np.ndarray, list[str], list[str]]:
        """One metric for the statistics: its values, and the clusters and ids of the samples in which it is defined."""
        defined = [sample for sample in self.samples if name in sample.metrics]
        values = np.array([sample.metrics[name] for sample in defined], dtype=np.float64)
        return values, [sample.cluster for sample in defined], [sample.id for sample in defined]

    @classmethod
    def concat(cls, parts: Iterable["Evaluation"]) -> "Evaluation":
        """One evaluation from those of several batches over the same catalog."""
        parts = list(parts)
        sizes = {part.catalog_size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"evaluations to be joined must share one catalog, found sizes {sorted(sizes)}")
        return cls(tuple(sample for part in parts for sample in part.samples), sizes.pop())

    def write_jsonl(self, path: str | Path) -> None:
        """One sample a line; the file is written whole or not at all."""
        with replacing(Path(path)) as scratch, scratch.open("w", encoding="utf-8") as file:
            for sample in self.samples:
                record = asdict(sample) | {"catalog_size": self.catalog_size}
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read_jsonl(cls, path: str | Path) -> "Evaluation":
        """What `write_jsonl` wrote. UserError names the file and line that is not such a record."""
        samples, sizes = [], set()
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                    sizes.add(int(record.pop("catalog_size")))
                    record["hits"], record["covered"] = tuple(record["hits"]), tuple(record["covered"])
                    samples.append(Sample(**record))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"{path}, line {number}: not a record of an evaluation ({error}).") from error
        if len(sizes) > 1:
            raise UserError(f"{path}: its samples were scored with catalogs of different sizes ({sorted(sizes)}).")
        return cls(tuple(samples), sizes.pop() if sizes else 0)


def score(
    texts: Sequence[str],
    conversations: Sequence[Conversation],
    catalog: Catalog,
    popularity: Popularity,
    *,
    n: int,
    ks: Sequence[int],
    year_tolerance: int = 2,
    position: Position = "line",
    match: Literal["folded", "normalised"] | Matching = "folded",
    ideal: Ideal = "standard",
) -> Evaluation:
    """Score the k-th text as the answer to the k-th conversation, of which `n` recommendations were asked.

    Ranks are as in `reward.relevance`, with the same `year_tolerance` and `position`. Hits, ranking metrics, coverage
    and popularity look at the first `n` ranks; the quality of the list at all its lines. Per sample: `ndcg@k`,
    `recall@k`, `mrr` (metrics), `catalog/valid`, `format/valid`, `format/complete`, `list/length`, `list/duplicates`,
    `list/seen`, `popularity/mean_rank`, and `recall_head@k`, `recall_mid@k`, `recall_tail@k` for the largest k
    (list_quality). A conversation without ground truths counts as 0 in the ranking metrics; leave it out beforehand
    if it should not count.
    """
    if len(texts) != len(conversations):
        raise ValueError(f"one text per conversation: found {len(texts)} texts and {len(conversations)} conversations")
    if not ks:
        raise ValueError("ks must name at least one cut-off")
    if not texts:
        return Evaluation((), len(catalog))
    hits = [
        relevance(
            text, c.ground_truth, c.seen, catalog, n, year_tolerance=year_tolerance, position=position, match=match
        )
        for text, c in zip(texts, conversations, strict=True)
    ]
    parsed = [parsed_lines(text, catalog) for text in texts]
    ranked = [items if position == "line" else [item for item in items if item is not None] for items in parsed]
    ranking = per_list_metrics(
        hits,
        [len(c.ground_truth) for c in conversations],
        ks,
        ideal=ideal,
        lengths=[_countable(items[:n], c, catalog) for items, c in zip(ranked, conversations, strict=True)],
    )
    samples = []
    for at, (text, conversation) in enumerate(zip(texts, conversations, strict=True)):
        items, recommended = parsed[at], ranked[at][:n]
        covered = catalog_indices(recommended, catalog, popularity)
        metrics = {name: float(values[at]) for name, values in ranking.items()}
        metrics |= list_quality(items, conversation.seen, catalog, n)
        metrics |= segment_recall(recommended, hits[at], conversation.ground_truth, max(ks), popularity)
        mean_rank = mean_popularity_rank(covered, popularity)
        if mean_rank is not None:
            metrics["popularity/mean_rank"] = mean_rank
        samples.append(
            Sample(
                id=conversation.id,
                cluster=conversation.cluster,
                text=text,
                n_relevant=len(conversation.ground_truth),
                hits=tuple(hits[at]),
                covered=tuple(covered),
                metrics=metrics,
            )
        )
    return Evaluation(tuple(samples), len(catalog))


def _countable(recommended: Sequence[Item | None], conversation: Conversation, catalog: Catalog) -> int:
    """Recommendations that could have been hits: in the catalog, and not of a title the user has seen."""
    seen = {fold(title) for title in conversation.seen}
    return sum(item is not None and item in catalog and fold(item.title) not in seen for item in recommended)


def _mean(values: Sequence[float]) -> float:
    """Correctly rounded sum: the same for any order of the values."""
    return math.fsum(values) / len(values)
