"""Options of RL algorithms (conf/algo)."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from convrec_r1.base.options import option


class Stage(Enum):
    """The last training stage of a run."""

    sft = "sft"
    rl = "rl"


class Advantage(Enum):
    """Unit of an advantage."""

    sequence = "sequence"
    rank = "rank"


class Ratio(Enum):
    """Unit of the clipped probability ratio."""

    token = "token"
    rank = "rank"
    sequence = "sequence"


class Aggregation(Enum):
    """Aggregation of token losses: see `ClippedSurrogate`."""

    sequence = "sequence"
    constant = "constant"
    token = "token"
    rank = "rank"


class Scale(Enum):
    """Whether advantages are divided by the standard deviation of their group."""

    std = "std"
    none = "none"


@dataclass
class LengthShaping:
    """Amounts added to the advantages of single tokens, so that lists get N lines (conf/algo/shaping). By default none."""

    short_eos: float = 0.0
    """EOS of a list with fewer than N lines."""
    exact_eos: float = 0.0
    """EOS of a list with N lines."""
    overflow: float = 0.0
    """Every token past rank N."""


@dataclass
class Overlong:
    """Soft overlong punishment, added to a list's reward (DAPO): 0 up to L_max - L_cache tokens, falling to -1 at L_max."""

    cache: float = option(0.0, least=0, most=1)
    """L_cache, as a share of L_max. 0: no punishment."""
    max_length: int | None = option(None, least=1)
    """L_max, tokens. null: the completion limit, `model.max_completion_length`."""


@dataclass
class AlgoConfig:
    """An algorithm: units of advantage and ratio, clipping, aggregation of tokens. The defaults are Rank-GRPO's."""

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
    """Weight of the KL divergence from the reference policy. 0: the reference is not computed."""
    group_size: int = option(8, least=2, hint="A group of one has no advantage to learn from.")
    """Completions per prompt (G)."""
    mu: int = option(1, least=1)
    """Passes over the rollouts of each step."""
    minibatches: int = option(1, least=1)
    """Optimizer steps per pass."""
    shaping: LengthShaping = field(default_factory=LengthShaping)
    overlong: Overlong = field(default_factory=Overlong)
    """Where the advantage is a rank's, the punishment is added to the return of each rank."""
    dynamic_sampling: int = option(0, least=0)
    """Rounds in which groups that teach nothing (equal rewards in each unit) are replaced by groups of the next prompts."""
    mask_truncated: bool = False
    """Leave completions that were cut off at the limit out of the loss. Their rewards still count in their group."""
    count_blank_lines: bool = False
    """A blank line takes a rank of its tokens, as in the public code of Rank-GRPO."""
    objective: Any = None
    """Your own objective: `_target_` and its options (docs/extend.md). null: `ClippedSurrogate` with the keys above."""
