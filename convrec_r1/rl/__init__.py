"""Group-relative RL on ranked lists as pure functions of tensors, independent of text, files and trainers.

Shapes: B completions (P prompts x G per prompt), T completion tokens, N ranks, V vocabulary. Data flow:

    segments     tokens -> ranks
    advantages   rewards -> group advantages; length shaping -> token advantages
    correction   log-probs of sampler and trainer -> importance weights
    objective    advantages, log-probs and weights -> loss
"""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:
    from convrec_r1.rl.advantages import LengthShaping, group_advantages, overlong_penalty, per_token, shape_lengths
    from convrec_r1.rl.correction import importance_weights
    from convrec_r1.rl.objective import (
        ClippedSurrogate,
        LossInputs,
        LossOutputs,
        Objective,
        batch_normalizer,
        policy_loss,
    )
    from convrec_r1.rl.segments import list_lengths, segment_ranks

__all__ = [
    "ClippedSurrogate",
    "LengthShaping",
    "LossInputs",
    "LossOutputs",
    "Objective",
    "batch_normalizer",
    "group_advantages",
    "importance_weights",
    "list_lengths",
    "overlong_penalty",
    "per_token",
    "policy_loss",
    "segment_ranks",
    "shape_lengths",
]

__getattr__ = lazy(
    __name__,
    advantages=["LengthShaping", "group_advantages", "overlong_penalty", "per_token", "shape_lengths"],
    correction=["importance_weights"],
    objective=["ClippedSurrogate", "LossInputs", "LossOutputs", "Objective", "batch_normalizer", "policy_loss"],
    segments=["list_lengths", "segment_ranks"],
)
