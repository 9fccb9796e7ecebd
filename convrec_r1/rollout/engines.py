"""The engine of a run: in its own processes, or over rollout workers."""

from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.policy import Policy
from convrec_r1.rollout.base import RolloutEngine, make_engine
from convrec_r1.rollout.config import RolloutConfig, choose_engine
from convrec_r1.rollout.constraint import Constraint


def run_engine(
    cfg: RolloutConfig, policy: Policy, *, max_length: int, cluster: ClusterConfig, constraint: Constraint | None = None
) -> RolloutEngine:
    """Build the engine that samples for a run: `make_engine`'s, or workers under Ray (rollout.workers).

    Args:
        policy: of the architecture that will be sampled.
        max_length: upper limit of prompt and completion together, in tokens.
        constraint: that `openings` refer to. None: no lists are held to the catalog.
    Raises:
        UserError: the class cannot be imported or built, or is no `RolloutEngine`.
    """
    cfg, _ = choose_engine(cfg)
    if not cfg.workers:
        return make_engine(cfg, policy, max_length=max_length, constraint=constraint)
    from convrec_r1.rollout.workers.engine import WorkersEngine  # imported late: most runs have no workers

    return WorkersEngine(cfg, policy, max_length=max_length, cluster=cluster, constraint=constraint)
