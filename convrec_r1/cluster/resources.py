"""CPUs and GPUs: what is asked for, what the nodes have, and whether it fits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bundle:
    """CPUs and GPUs that must lie on one node, and who asks for them."""

    cpus: float
    gpus: float = 0.0
    what: str = "task"

    def __str__(self) -> str:
        return f"{self.what} ({amounts(self.cpus, self.gpus)})"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is alive."""

    id: str
    address: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.address} ({amounts(self.cpus, self.gpus)})"


def fit_together(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Return whether all bundles fit on the nodes at once, each on one node: the largest first, each where least is left."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (b.gpus, b.cpus), reverse=True):
        fitting = [left for left in free if left[0] >= bundle.gpus - 1e-6 and left[1] >= bundle.cpus - 1e-6]
        if not fitting:
            return False
        chosen = min(fitting)
        chosen[0] -= bundle.gpus
        chosen[1] -= bundle.cpus
    return True


def too_little(bundles: Sequence[Bundle], nodes: Sequence[Node], waited: float) -> str:
    """Return the message of a cluster that cannot hold `bundles`. waited: seconds."""
    late = f" after {waited:g} s (cluster.wait)" if waited else ""
    asked = ", ".join(f"{count} x {what}" for what, count in Counter(map(str, bundles)).items())
    return (
        f"The cluster cannot hold what this run asks for at once: {asked}. It has {listed(nodes)}{late}. Ask for less "
        "(trainer.devices, rollout.workers), or add nodes; cluster.wait=SECONDS waits for nodes that have yet to join."
    )


def listed(nodes: Sequence[Node]) -> str:
    """Return nodes in words."""
    return f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}: {', '.join(map(str, nodes))}"


def amounts(cpus: float, gpus: float) -> str:
    """Return CPUs and GPUs in words."""
    return ", ".join(f"{n:g} {kind}{'' if n == 1 else 's'}" for n, kind in ((cpus, "CPU"), (gpus, "GPU")))
