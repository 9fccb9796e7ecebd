"""Options of the evaluation: conf/eval."""

from dataclasses import dataclass, field
from enum import Enum


class Select(Enum):
    last = "last"
    """The policy of the last step."""
    best = "best"
    """The policy of the evaluation with the highest `eval.metric` on the validation split."""


@dataclass
class EvalConfig:
    ks: list[int] = field(default_factory=lambda: [5, 10, 15, 20])
    ideal: str = "standard"
    split: str = "test"
    every: int = 50
    """RL steps between evaluations on the validation split; 0: none."""
    validation_size: int = 200
    metric: str | None = None
    """What runs are judged by: the best checkpoint, early stopping, reports; null: ndcg@10, or at the largest k <= n."""
    select: Select = Select.last
    """Which policy a run ends with, and is evaluated by. checkpoints/best is kept in either case."""
    patience: int | None = None
    """Evaluations without a new best after which training stops; null: it goes on."""
    baselines: list[str] = field(default_factory=lambda: ["popularity", "zero_shot", "sft"])
    level: float = 0.95
    resamples: int = 2000
