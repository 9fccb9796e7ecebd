"""Users' feedback as a verifiable reward: relevance of each rank, and what a rank or a list earns."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.reward.rank import rank_returns, relevance, sequence_reward

__all__ = ["rank_returns", "relevance", "sequence_reward"]

__getattr__ = lazy(__name__, {"rank_returns": "rank", "relevance": "rank", "sequence_reward": "rank"})
