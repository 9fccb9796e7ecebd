"""Options of the reward: conf/reward."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from convrec_r1.base.options import option


class ReturnKind(Enum):
    """Return of a rank: see `rank_returns`."""

    exp_inf = "exp_inf"
    log_decay = "log_decay"
    exp = "exp"


class SequenceReward(Enum):
    """Reward of a list: see `sequence_reward`."""

    dcg = "dcg"
    ndcg = "ndcg"
    hits = "hits"


class Position(Enum):
    """Rank of a line that is not an item. line: it keeps its rank with relevance 0. parsed: the line is dropped."""

    line = "line"
    parsed = "parsed"


@dataclass
class RankRewardConfig:
    """Options of the paper's reward, `RankReward`."""

    _target_: str = "convrec_r1.reward.rank.RankReward"
    name: str = MISSING
    kind: ReturnKind = ReturnKind.exp_inf
    gamma: float | None = option(None, least=1)
    """Discount per rank. Needed by `kind: exp`."""
    sequence: SequenceReward = SequenceReward.dcg
    position: Position = Position.line

    def problems(self) -> list[str]:
        if self.kind is ReturnKind.exp and self.gamma is None:
            return ["reward.kind=exp needs reward.gamma, a number of at least 1."]
        return []
