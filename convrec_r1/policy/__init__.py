"""The policy that SFT, RL, rollouts and evaluation share."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.policy.batch import TokenBatch
    from convrec_r1.policy.load import build_policy, load_policy
    from convrec_r1.policy.policy import Policy
    from convrec_r1.policy.prompts import PromptEncoder

__all__ = ["Policy", "PromptEncoder", "TokenBatch", "build_policy", "load_policy"]

__getattr__ = lazy(
    __name__,
    batch=["TokenBatch"],
    load=["build_policy", "load_policy"],
    policy=["Policy"],
    prompts=["PromptEncoder"],
)
