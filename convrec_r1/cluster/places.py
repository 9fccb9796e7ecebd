"""Where Ray runs something: on one node and nowhere else."""

# Ray is optional.
# pyright: reportMissingImports=none

from typing import Any


def only_on(node: str | None = None) -> Any:
    """Return the scheduling strategy of a task or an actor that runs on one node. If the node is gone, it fails.

    Args:
        node: Ray's id of the node. None: that of this process.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node or ray.get_runtime_context().get_node_id(), soft=False)
