"""What a rollout worker reserves. Imports neither torch nor Ray."""

from convrec_r1.cluster.resources import Bundle
from convrec_r1.rollout.config import RolloutConfig


def of_worker(rollout: RolloutConfig, *, gpu: bool) -> Bundle:
    """Return the CPUs and GPUs of one worker. gpu: whether the trainer computes on a GPU."""
    return Bundle(rollout.worker_cpus, rollout.gpus_of_worker(gpu), "rollout worker")
