"""Options of the evaluation: conf/eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from convrec_r1.base.options import option


class Select(Enum):
    last = "last"
    """The policy of the last step."""
    best = "best"
    """The policy of the evaluation with the highest `eval.metric` on the validation split."""


@dataclass
class EvalConfig:
    ks: list[int] = option(factory=lambda: [5, 10, 15, 20], least=1)
    """Cut-offs of metrics "at k"; those above n are left out."""
    ideal: str = option("standard", choices=("standard", "paper"))
    """The ideal list of NDCG: with min(k, ground truths) hits, or as the paper's public code takes it."""
    split: str = option("test", choices=("train", "validation", "test"))
    every: int = option(50, least=0)
    """RL steps between evaluations on the validation split; 0: none."""
    validation_size: int = option(200, least=1)
    metric: str | None = None
    """What runs are judged by: best checkpoint, early stopping, reports; null: ndcg@10, or at the largest k <= n."""
    select: Select = Select.last
    """Which policy a run ends with, and is evaluated by. checkpoints/best is kept in either case."""
    patience: int | None = option(None, least=1)
    """Evaluations without a new best after which training stops; null: no early stopping."""
    baselines: list[str] | None = None
    """Names in the group `baselines`; null: all of them; []: none."""
    level: float = option(0.95, above=0, below=1)
    """Of confidence intervals."""
    resamples: int = option(2000, least=1)
    """Of the bootstrap."""


def cutoffs(ks: Sequence[int], n: int) -> list[int]:
    """Return the cut-offs that lists of `n` can be measured at, in order."""
    return sorted({k for k in ks if k <= n}) or [n]


def metric_in_effect(cfg: EvalConfig, n: int) -> str:
    """Return `eval.metric`, or its default where that is null."""
    ks = cutoffs(cfg.ks, n)
    return cfg.metric or f"ndcg@{10 if 10 in ks else ks[-1]}"
