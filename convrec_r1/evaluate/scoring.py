"""Score the lists of a policy: one sample per conversation, and their summary."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from convrec_r1.base.errors import UserError
from convrec_r1.base.files import replacing
from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import Conversation
from convrec_r1.evaluate.metrics import BUILT_IN, NDCG, Lists, Metric
from convrec_r1.evaluate.metrics.list_quality import parsed_lines
from convrec_r1.evaluate.metrics.ranking import Ideal
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.sample import Sample
from convrec_r1.matching import Matching, as_matching
from convrec_r1.reward import relevance
from convrec_r1.reward.rank import Position


def built_in(ideal: Ideal = "standard") -> dict[str, Metric]:
    """Return the built-in metrics, with this ideal list for NDCG."""
    return {kind.__name__: NDCG(ideal) if kind is NDCG else kind() for kind in BUILT_IN}


@dataclass(frozen=True)
class Evaluation:
    """The scored samples of one run on one split. The summary does not depend on their order, to the last bit."""

    samples: tuple[Sample, ...]
    catalog_size: int
    metrics: Mapping[str, Metric] = field(default_factory=built_in, compare=False, repr=False)
    """Metrics that compute the values of the whole set."""

    def __len__(self) -> int:
        return len(self.samples)

    def summary(self) -> dict[str, float]:
        """Return the mean of each metric over the samples that define it, and `overall`. Empty without samples."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.metrics)
        means = {name: _mean([s.metrics[name] for s in self.samples if name in s.metrics]) for name in sorted(names)}
        return means | self.overall()

    def overall(self) -> dict[str, float]:
        """Return the values of the whole set, such as `catalog/coverage`. Empty without samples."""
        if not self.samples:
            return {}
        found: dict[str, float] = {}
        for metric in self.metrics.values():
            found |= metric.overall(self.samples, self.catalog_size)
        return {name: float(value) for name, value in found.items() if not math.isnan(value)}

    def values(self, name: str) -> tuple[np.ndarray, list[str], list[str]]:
        """Return values, clusters and ids of the samples that define a metric."""
        defined = [sample for sample in self.samples if name in sample.metrics]
        values = np.array([sample.metrics[name] for sample in defined], dtype=np.float64)
        return values, [sample.cluster for sample in defined], [sample.id for sample in defined]

    @classmethod
    def concat(cls, parts: Iterable["Evaluation"]) -> "Evaluation":
        """Join the evaluations of several batches over the same catalog."""
        parts = list(parts)
        sizes = {part.catalog_size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"evaluations to be joined must share one catalog, found sizes {sorted(sizes)}")
        samples = tuple(sample for part in parts for sample in part.samples)
        return cls(samples, sizes.pop(), parts[0].metrics)

    def write_jsonl(self, path: str | Path) -> None:
        """Write one sample per line, atomically."""
        with replacing(Path(path)) as scratch, scratch.open("w", encoding="utf-8") as file:
            for sample in self.samples:
                record = asdict(sample) | {"catalog_size": self.catalog_size}
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read_jsonl(cls, path: str | Path, metrics: Mapping[str, Metric] | None = None) -> "Evaluation":
        """Read a file of `write_jsonl`. UserError gives the file and the line that is not a record.

        metrics: metrics that compute the values of the whole set. None: the built-in ones.
        """
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
        return cls(tuple(samples), sizes.pop() if sizes else 0, built_in() if metrics is None else metrics)


def score(
    texts: Sequence[str],
    conversations: Sequence[Conversation],
    catalog: Catalog,
    popularity: Popularity,
    *,
    n: int,
    ks: Sequence[int],
    match: str | Matching = "folded",
    position: Position = "line",
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Score the k-th text as the answer to the k-th conversation.

    List quality uses all lines; all other metrics use the first `n` ranks. The ranking metrics of a conversation without ground
    truths are 0; leave such conversations out if they should not count.

    Args:
        texts: [B], the lists as a policy wrote them.
        conversations: [B].
        catalog, popularity: Catalog and popularity of the dataset.
        n: Recommendations in a list.
        ks: Cut-offs, at least one.
        match: Rule for "the same item".
        position: Rank of a line that is not an item, as in `reward.relevance`.
        metrics: Metrics by name. None: the built-in ones.

    Raises:
        ValueError: Different numbers of texts and conversations, or no cut-off.
        UserError: A metric returned a wrong shape or infinite values, or two metrics have one name.
    """
    if len(texts) != len(conversations):
        raise ValueError(f"one text per conversation: found {len(texts)} texts and {len(conversations)} conversations")
    if not ks:
        raise ValueError("ks must name at least one cut-off")
    metrics = built_in() if metrics is None else metrics
    if not texts:
        return Evaluation((), len(catalog), metrics)
    lists = judge(texts, conversations, catalog, popularity, n=n, ks=ks, match=as_matching(match), position=position)
    values = values_per_list(lists, metrics)
    samples = [
        Sample(
            id=conversation.id,
            cluster=conversation.cluster,
            text=texts[at],
            n_relevant=int(lists.n_relevant[at]),
            hits=tuple(lists.hits[at].tolist()),
            covered=tuple(lists.covered[at]),
            metrics={name: float(column[at]) for name, column in values.items() if not math.isnan(column[at])},
        )
        for at, conversation in enumerate(conversations)
    ]
    return Evaluation(tuple(samples), len(catalog), metrics)


def judge(
    texts: Sequence[str],
    conversations: Sequence[Conversation],
    catalog: Catalog,
    popularity: Popularity,
    *,
    n: int,
    ks: Sequence[int],
    match: Matching,
    position: Position,
) -> Lists:
    """Return the input of the metrics: parsed lists, with the relevance of each rank."""
    lines = [parsed_lines(text, catalog) for text in texts]
    kept = lines if position == "line" else [[item for item in items if item is not None] for items in lines]
    hits = [
        relevance(text, c.ground_truth, c.seen, catalog, n, position=position, match=match)
        for text, c in zip(texts, conversations, strict=True)
    ]
    return Lists(
        texts=texts,
        lines=lines,
        ranked=[items[:n] for items in kept],
        hits=np.array(hits, dtype=np.int64),
        conversations=conversations,
        catalog=catalog,
        popularity=popularity,
        match=match,
        n=n,
        ks=list(ks),
    )


def values_per_list(lists: Lists, metrics: Mapping[str, Metric]) -> dict[str, np.ndarray]:
    """Return the values of all metrics: float [B] by name. NaN: not defined."""
    found: dict[str, np.ndarray] = {}
    owner: dict[str, str] = {}
    for key, metric in metrics.items():
        for name, values in metric.per_list(lists).items():
            column = np.asarray(values, dtype=np.float64)
            if name in owner:
                raise UserError(f"metrics.{owner[name]} and metrics.{key} both give {name}. Leave one out.")
            if column.shape != (len(lists),):
                raise UserError(
                    f"metrics.{key}: {name} has shape {column.shape}; it must be one number per list: ({len(lists)},)."
                )
            if np.isinf(column).any():
                raise UserError(
                    f"metrics.{key}: {name} is infinite for {np.isinf(column).sum()} lists. Use NaN for undefined."
                )
            owner[name], found[name] = key, column
    return found


def _mean(values: Sequence[float]) -> float:
    """Return the mean with a correctly rounded sum, which does not depend on the order."""
    return math.fsum(values) / len(values)
