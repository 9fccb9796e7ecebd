"""Options of the reward: conf/reward."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class ReturnKind(Enum):
    exp_inf = "exp_inf"
    log_decay = "log_decay"
    exp = "exp"


class SequenceReward(Enum):
    dcg = "dcg"
    ndcg = "ndcg"
    hits = "hits"


class Position(Enum):
    line = "line"
    parsed = "parsed"


@dataclass
class RewardConfig:
    name: str = MISSING
    kind: ReturnKind = ReturnKind.exp_inf
    gamma: float | None = None
    sequence: SequenceReward = SequenceReward.dcg
    position: Position = Position.line
    year_tolerance: int = 2
