"""A real Ray on this machine, for tests."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

STORE = 100 << 20
"""Bytes of each node's object store."""
# A node that is gone is noticed within three seconds, not twenty.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@contextmanager
def two_nodes(cpus: int = 1, **head: Any) -> Iterator[Any]:
    """Yield a `ray.cluster_utils.Cluster` of two nodes.

    Tests join it, as `connect` with an address does: a process that has started a Ray with a token of its own joins no other.

    Args:
        cpus: of each node.
        head: further arguments of the first node.
    """
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    from ray.cluster_utils import Cluster
    from support import PATHS

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        path = os.pathsep.join(filter(None, [PATHS["PYTHONPATH"], os.environ.get("PYTHONPATH")]))
        patch.setenv("PYTHONPATH", path)  # of the nodes
        node = {"num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False}
        # The paths of sockets must be short.
        cluster = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder, **head})
        cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """Two nodes with a CPU each, for all tests on Ray. A test that changes the nodes leaves two."""
    with two_nodes(_system_config=HEALTH) as cluster:
        yield cluster
