"""Start Ray on this machine or join a cluster, once per process; say what it has, and refuse what cannot work."""

from collections.abc import Sequence
from dataclasses import dataclass

from convrec_r1.cluster.config import ClusterConfig


@dataclass(frozen=True)
class Bundle:
    """CPUs and GPUs that must lie on one node, and who asks for them."""

    cpus: float
    gpus: float = 0.0
    what: str = "a task"


class Connection:
    """The Ray that this process uses. A context manager: leaving it closes it."""

    def require(self, bundles: Sequence[Bundle]) -> None:
        """Raise a UserError that says what is asked and what there is, where the cluster cannot hold all `bundles` at once."""
        raise NotImplementedError

    def close(self) -> None:
        """Disconnect from Ray, and end it if this process started it. Does nothing where others still use the connection."""
        raise NotImplementedError

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(cfg: ClusterConfig) -> Connection:
    """Return the connection of this process to Ray: started, joined, or the one that a Ray worker or an earlier call has.

    Raises:
        UserError: Ray is not installed, does not answer, or its nodes run other versions.
    """
    raise NotImplementedError
