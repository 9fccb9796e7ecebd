"""Options of the evaluation: conf/eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from convrec_r1.base.options import option
from convrec_r1.rollout.config import ConstraintChoice


class Select(Enum):
    last = "last"
    """The policy of the last step."""
    best = "best"
    """The policy of the evaluation with the highest `eval.metric` on the validation split."""


class Missing(Enum):
    """Conversations without a list (task=score)."""

    empty = "empty"
    """They count as empty lists."""
    leave_out = "leave_out"
    """They do not count. Systems with lists for other conversations are then not comparable."""


@dataclass
class ScoreConfig:
    """task=score."""

    missing: Missing = Missing.empty


@dataclass
class EvalConfig:
    ks: list[int] = option(factory=lambda: [5, 10, 15, 20], least=1)
    """Cut-offs of metrics "at k". Cut-offs above n are ignored."""
    ideal: str = option("standard", choices=("standard", "paper"))
    """Ideal list of NDCG. standard: min(k, ground truths) hits. paper: as in the paper's public code."""
    constraint: ConstraintChoice = ConstraintChoice.none
    """What the lists of policies are held to while they are written."""
    split: str = option("test", choices=("train", "validation", "test"))
    every: int = option(50, least=0)
    """RL steps between evaluations on the validation split. 0: no evaluations."""
    validation_size: int = option(200, least=1)
    metric: str | None = None
    """Metric of best checkpoint, early stopping and reports. null: ndcg@10, or NDCG at the largest k <= n."""
    select: Select = Select.last
    """Policy that a run ends with and evaluates. checkpoints/best is always kept."""
    patience: int | None = option(None, least=1)
    """Number of evaluations without a new best before training stops. null: no early stopping."""
    baselines: list[str] | None = None
    """Names in the group `baselines`. null: all but `teacher`, which costs money: name it. []: none."""
    level: float = option(0.95, above=0, below=1)
    """Level of confidence intervals."""
    resamples: int = option(2000, least=1)
    """Number of bootstrap resamples."""


def cutoffs(ks: Sequence[int], n: int) -> list[int]:
    """Return the cut-offs up to `n`, sorted. [n] if there are none."""
    return sorted({k for k in ks if k <= n}) or [n]


def metric_in_effect(cfg: EvalConfig, n: int) -> str:
    """Return `eval.metric`, or its default if it is null."""
    ks = cutoffs(cfg.ks, n)
    return cfg.metric or f"ndcg@{10 if 10 in ks else ks[-1]}"


def system_name(lists: str | None, name: str | None) -> str:
    """Return what task=score calls the system that wrote `lists`: `name`, or the file's name."""
    return name or Path(str(lists)).stem


def split_note(cfg: EvalConfig, *, trained: bool, chosen: bool) -> str | None:
    """Return a warning if the policy was trained or chosen on the conversations that it is evaluated on, else None.

    Args:
        trained: it was trained on the dataset's training conversations.
        chosen: it is the one of several that did best on the validation split.
    """
    if cfg.split == "train" and trained:
        return "The policy was trained on these conversations (eval.split=train): other conversations will show lower values."
    if cfg.split == "validation" and chosen:
        return (
            "The policy was chosen by its value on these conversations (eval.split=validation with eval.select=best or "
            "eval.patience): other conversations will show lower values. eval.split=test reports on others."
        )
    return None
