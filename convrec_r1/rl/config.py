"""Options of an algorithm: conf/algo."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from convrec_r1.base.options import option


class Stage(Enum):
    """Stage that a run ends with."""

    sft = "sft"
    rl = "rl"


class Advantage(Enum):
    """Unit that an advantage belongs to."""

    sequence = "sequence"
    rank = "rank"


class Ratio(Enum):
    """Unit of the probability ratio, which is clipped."""

    token = "token"
    rank = "rank"
    sequence = "sequence"


class Aggregation(Enum):
    """How token losses add up: see `ClippedSurrogate`."""

    sequence = "sequence"
    constant = "constant"
    token = "token"
    rank = "rank"


class Scale(Enum):
    """Division of advantages by the standard deviation of their group."""

    std = "std"
    none = "none"


@dataclass
class LengthShaping:
    """What is added to the advantage of single tokens to hold a list to N lines: conf/algo/shaping."""

    short_eos: float = -0.1
    """EOS of a list with fewer than N lines."""
    exact_eos: float = 0.1
    """EOS right after rank N."""
    overflow: float = -0.1
    """Every token past rank N."""


@dataclass
class AlgoConfig:
    """An algorithm: which unit is credited, which is clipped, how tokens add up."""

    name: str = MISSING
    stage: Stage = Stage.rl
    advantage: Advantage = Advantage.rank
    ratio: Ratio = Ratio.rank
    aggregation: Aggregation = Aggregation.rank
    scale: Scale = Scale.std
    clip_low: float = option(0.06, least=0, below=1)
    clip_high: float = option(0.08, least=0)
    dual_clip: float | None = option(None, above=1)
    beta: float = option(1e-3, least=0)
    """Weight of the KL to the reference policy. 0: no reference is computed."""
    group_size: int = option(8, least=2, hint="A group of one has no advantage to learn from.")
    """Completions per prompt (G)."""
    mu: int = option(1, least=1)
    """Passes over the rollouts of each step."""
    minibatches: int = option(1, least=1)
    """Optimizer steps per pass."""
    shaping: LengthShaping = field(default_factory=LengthShaping)
    objective: Any = None
    """A user's objective: `_target_` and its options (docs/extend.md). null: the clipped surrogate of the keys above."""
