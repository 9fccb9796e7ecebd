"""Users' feedback as a verifiable reward: relevance of each rank, returns of ranks and lists."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.reward.base import JudgedLists, Returns, Reward
    from convrec_r1.reward.rank import RankReward, rank_returns, relevance, sequence_reward

__all__ = ["JudgedLists", "RankReward", "Returns", "Reward", "rank_returns", "relevance", "sequence_reward"]

__getattr__ = lazy(
    __name__,
    base=["JudgedLists", "Returns", "Reward"],
    rank=["RankReward", "rank_returns", "relevance", "sequence_reward"],
)
