"""What the processes of tests/test_cluster.py do."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ddp_worker import OnCpus
from pytorch_lightning import Callback

from convrec_r1 import cli
from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import stop
from convrec_r1.cluster import process
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import connect
from convrec_r1.cluster.desk import Desk
from convrec_r1.cluster.reaper import users
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


def own_ray(found: str) -> None:
    """Try options of a Ray of this process's own; write what happens; stay connected to the last one until killed."""
    said: dict[str, Any] = {}
    before, start = set(Path("/tmp").glob("convrec-ray-*")), time.monotonic()
    said["late"] = attempt(start_timeout=0.3)
    said["took"] = time.monotonic() - start
    said["left"] = [str(folder) for folder in set(Path("/tmp").glob("convrec-ray-*")) - before if users(str(folder))]
    said["dashboard"] = attempt(dashboard=True)
    said["host"] = address_of_this_machine()
    if said["host"]:
        with connect(small(host=said["host"])) as connection:
            said["node"] = connection.nodes()[0].address
            said["elsewhere"] = listening(ray_folder())
    with connect(small()):
        import ray

        assert ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote()) != os.getpid()
        said["folder"], said["loopback"] = str(ray_folder()), listening(ray_folder())
        said["address"] = ray.get_runtime_context().gcs_address
        said["token"] = os.environ["RAY_AUTH_TOKEN"]
        Path(f"{found}.part").write_text(json.dumps(said))
        Path(f"{found}.part").rename(found)
        time.sleep(600)


def small(**options: Any) -> ClusterConfig:
    return ClusterConfig("ray", cpus=1, gpus=0, object_store_gib=0.1, **options)


def attempt(**options: Any) -> str:
    """Start a Ray. Return what the connection says, or the message of the error."""
    try:
        with connect(small(**options)) as connection:
            return str(connection)
    except UserError as error:
        return str(error)


def address_of_this_machine() -> str | None:
    """Return an address of this machine beside 127.0.0.1. None: it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return probe.getsockname()[0]


def ray_folder() -> Path:
    import ray

    return Path(ray._private.worker._global_node.get_temp_dir_path())


def join(address: str) -> None:
    """Join a Ray and say what it has, or why not."""
    try:
        with connect(ClusterConfig("ray", address=address)) as connection:
            print(connection)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def listening(folder: Path) -> list[str]:
    """Addresses on which the processes of the Ray in `folder` listen, in hexadecimal as /proc writes them."""
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
