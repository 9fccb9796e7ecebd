"""Options of a comparison."""

from dataclasses import dataclass

from convrec_r1.base.options import option
from convrec_r1.cluster.config import ClusterConfig


@dataclass
class CompareConfig:
    """task=compare."""

    baseline: str | None = None
    """System to compare the others with: its label or algorithm. null: grpo, else sft, else the first."""
    metric: str | None = None
    """Metric of curves, figures and tests. null: `eval.metric` of the runs."""
    examples: int = option(6, least=0)
    """Number of conversations shown with the lists of all systems."""


@dataclass
class RayLauncherConfig:
    """hydra/launcher=ray: the runs of a sweep side by side, on this machine or on the nodes of a Ray cluster."""

    _target_: str = "hydra_plugins.convrec_r1.RayLauncher"
    address: str | None = None
    """`auto` or HOST:PORT: join that cluster. null: start Ray on this machine, for the time of the sweep."""
    num_cpus: float = option(1, least=0)
    """CPUs that a run takes, and its number of threads. As many runs go side by side as there is room for."""
    num_gpus: float | None = option(None, least=0)
    """GPUs that a run takes; 0.5: two runs share one. null: trainer.devices, or 1; 0 for a trainer on CPUs or
    where there are no GPUs."""
    cpus: int | None = option(None, least=1)
    """CPUs of the Ray that is started here. null: all."""
    gpus: int | None = option(None, least=0)
    """GPUs of the Ray that is started here. null: all."""

    wait: float = option(0.0, least=0)
    """Seconds to wait for nodes that have yet to join, where no node has what a run takes."""

    def cluster(self) -> ClusterConfig:
        """Return the options of the connection."""
        store = 0.1 if self.address is None else None  # runs put nothing into the object store
        return ClusterConfig(
            "ray", self.address, cpus=self.cpus, gpus=self.gpus, object_store_gib=store, wait=self.wait
        )
