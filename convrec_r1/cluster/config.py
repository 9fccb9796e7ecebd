"""Options of the cluster: conf/cluster. They say where a run computes, never what."""

import importlib.util
from dataclasses import dataclass

from omegaconf import MISSING

from convrec_r1.base.options import option

LOCAL, RAY = "local", "ray"
AUTO = "auto"
"""`cluster.address` of the Ray that runs on this machine."""
ONLY_STARTED = ("cpus", "gpus", "object_store_gib", "dashboard", "host")
"""Options of a Ray that the run starts. One that is joined has its own."""


@dataclass
class ClusterConfig:
    """Where processes run: on this machine without Ray (local), or under Ray."""

    name: str = option(MISSING, choices=(LOCAL, RAY))
    address: str | None = None
    """null: start Ray on this machine, for this run. HOST:PORT: join that Ray. auto: join the one of this machine."""
    cpus: int | None = option(None, least=1)
    """CPUs of the Ray that is started. null: all."""
    gpus: int | None = option(None, least=0)
    """GPUs of the Ray that is started. null: all."""
    object_store_gib: float | None = option(None, above=0)
    """Memory of the object store of the Ray that is started. null: Ray's own, 30 % of the RAM."""
    dashboard: bool = False
    """Start Ray's dashboard. Needs ray[default]."""
    host: str = "127.0.0.1"
    """Address on which the Ray that is started and its dashboard listen. 127.0.0.1: nobody else's machine reaches them."""
    start_timeout: float = option(60.0, above=0)
    """Seconds until Ray must answer."""
    wait: float = option(0.0, least=0)
    """Seconds to wait for nodes that have yet to join, where the cluster has too few CPUs or GPUs for what is asked."""
    trainer_cpus: int = option(1, least=1)
    """CPUs of a training process, where `trainer.devices` x `trainer.nodes` > 1. Also its threads, unless `trainer.threads`
    is given."""
    retries: int = option(3, least=0)
    """Times that training restarts from the newest checkpoint after a training process or its node died."""

    @property
    def on_ray(self) -> bool:
        """Whether the run uses Ray."""
        return self.name == RAY


def problems(cluster: ClusterConfig) -> list[str]:
    """Return a sentence for each option that cannot work."""
    if not cluster.on_ray:
        asked = [f"cluster.address={cluster.address}"] if cluster.address else []
        return [f"{key} joins a Ray: add cluster=ray." for key in asked]
    wrong = [] if installed() else [missing()]
    if cluster.address is None:
        return wrong
    host, _, port = cluster.address.rpartition(":")
    if cluster.address != AUTO and not (host and "/" not in host and port.isdecimal() and 0 < int(port) < 65536):
        wrong.append(f"cluster.address={cluster.address}: give it as HOST:PORT, as 10.0.0.1:6379, or auto.")
    default = ClusterConfig()
    given = [f"cluster.{name}" for name in ONLY_STARTED if getattr(cluster, name) != getattr(default, name)]
    if given:
        wrong.append(
            f"{', '.join(given)} with cluster.address={cluster.address}: a Ray that is joined has its own. Give them to its "
            "`ray start`, or leave cluster.address out."
        )
    return wrong


def installed() -> bool:
    """Whether Ray can be imported here. Does not import it."""
    return importlib.util.find_spec("ray") is not None


def missing() -> str:
    """Return the message of a run that needs Ray where it is not installed."""
    return "cluster=ray needs Ray, which is not installed: pip install 'convrec-r1[ray]'. Without it: cluster=local."
