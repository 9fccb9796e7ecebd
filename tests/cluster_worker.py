"""What the processes of tests/test_cluster.py do."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ddp_worker import OnCpus
from pytorch_lightning import Callback

from convrec_r1 import cli
from convrec_r1.base.signals import stop
from convrec_r1.cluster import process
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import connect
from convrec_r1.cluster.desk import Desk
from convrec_r1.config import checks
from convrec_r1.modules import fit


class Shards(Callback):
    """Sharding over CPUs, in each process that trains."""

    def __init__(self) -> None:
        fit.Sharded = OnCpus


def sharded(*overrides: str) -> None:
    """`python -m convrec_r1 OVERRIDES` with FSDP on CPUs, which the project itself refuses as of no use."""
    checks.check = lambda cfg: None
    sys.argv[1:] = overrides
    cli.main()


def without_ray(*overrides: str) -> None:
    """`python -m convrec_r1 OVERRIDES` where Ray is not installed."""
    sys.modules["ray"] = None  # pyright: ignore[reportArgumentType]  # as Python's documentation says
    sys.argv[1:] = overrides
    cli.main()


def start_and_die(ports: str) -> None:
    """Start a Ray, write what listens where, run a task, and be killed."""
    with connect(ClusterConfig("ray", cpus=1, gpus=0, object_store_gib=0.1)):
        import ray

        folder = Path(ray._private.worker._global_node.get_temp_dir_path())
        assert ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote()) != os.getpid()
        Path(ports).write_text("\n".join([str(folder), *listening(folder)]))
        os.kill(os.getpid(), signal.SIGKILL)


def listening(folder: Path) -> list[str]:
    """Addresses on which the processes of the Ray in `folder` listen, in hexadecimal as /proc writes them."""
    from convrec_r1.cluster.reaper import users

    inodes = set()
    for pid in [*users(str(folder)), os.getpid()]:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(handle) if handle.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return sorted({row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes})


def cut_off(address: str) -> None:
    """Train, or so, until the desk does not answer any more."""

    class Here(Desk):
        def pid(self) -> int:
            return os.getpid()

    process.LEASE = 1.0
    with connect(ClusterConfig("ray", address=address)):
        import ray

        kind: Any = ray.remote(num_cpus=0)(Here)
        desk = kind.remote(3)
        pid: Any = ray.get(desk.pid.remote())
        with process._desk_asked(desk, first=True):
            time.sleep(2)
            ray.get(desk.news.remote(signal.SIGTERM))
            while stop.number != signal.SIGTERM:
                time.sleep(0.05)
            print("answered", flush=True)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(60)
