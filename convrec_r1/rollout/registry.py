"""Engine names -> how to make one. Imports happen on use: an engine that is not chosen need not be installed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convrec_r1.policy import Policy
    from convrec_r1.rollout.base import RolloutEngine

ENGINES = ("hf",)


def make_engine(name: str, policy: "Policy", *, batch_size: int) -> "RolloutEngine":
    """The engine `name` for `policy`; `batch_size` sequences at a time where the engine batches itself."""
    if name == "hf":
        from convrec_r1.rollout.hf import HFEngine

        return HFEngine(policy, batch_size=batch_size)
    raise ValueError(f"unknown rollout engine {name!r}: choose among {', '.join(ENGINES)}")
