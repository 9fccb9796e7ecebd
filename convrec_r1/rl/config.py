"""Options of an algorithm: conf/algo."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Stage(Enum):
    sft = "sft"
    rl = "rl"


class Advantage(Enum):
    sequence = "sequence"
    rank = "rank"


class Ratio(Enum):
    token = "token"
    rank = "rank"
    sequence = "sequence"


class Aggregation(Enum):
    sequence = "sequence"
    constant = "constant"
    token = "token"
    rank = "rank"


class Scale(Enum):
    std = "std"
    none = "none"


@dataclass
class ShapingConfig:
    short_eos: float = -0.1
    exact_eos: float = 0.1
    overflow: float = -0.1


@dataclass
class AlgoConfig:
    """An algorithm: which unit is credited, which is clipped, how tokens add up. See conf/algo."""

    name: str = MISSING
    stage: Stage = Stage.rl
    advantage: Advantage = Advantage.rank
    ratio: Ratio = Ratio.rank
    aggregation: Aggregation = Aggregation.rank
    scale: Scale = Scale.std
    clip_low: float = 0.06
    clip_high: float = 0.08
    dual_clip: float | None = None
    beta: float = 1e-3
    group_size: int = 8
    mu: int = 1
    """Passes over each step's rollouts."""
    minibatches: int = 1
    """Optimizer steps a pass."""
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
