"""Hosts on one machine: network namespaces with an address and a Ray node each, which can be cut off and killed.

Needs root, Linux and iproute2. A bridge in a namespace of its own is the switch between the hosts. The network of the machine
itself is not touched.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]
PORT = 6379
STORE = 100 << 20
"""Bytes of each node's object store."""
HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A host that is cut off is out of the cluster within about five seconds. Ray's own settings take up to a minute."""
FOR_EVER = 'while :; do "$@"; sleep 1; done'
"""As systemd or Kubernetes do: a node that the cluster took for dead ends, and must be started again to join."""


def missing() -> str | None:
    """Return what this machine lacks to have hosts. None: nothing."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are of Linux"
    if os.geteuid():
        return "only root makes network namespaces"
    lacking = [tool for tool in ("ip", "unshare", "hostname") if shutil.which(tool) is None]
    return f"{', '.join(lacking)} is not installed (iproute2, util-linux, hostname)" if lacking else None


def ip(*arguments: str) -> str:
    """Run `ip ARGUMENTS` and return what it prints."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A network namespace with an address, a name, and at most one Ray node."""

    def __init__(self, network: "Network", number: int, cpus: int) -> None:
        self.network, self.number, self.cpus = network, number, cpus
        self.name, self.address = f"host{number}", f"10.71.0.{number}"
        self.space = f"{network.prefix}-{number}"
        self.log = network.folder / f"{self.name}.log"
        self.etc = Path("/etc/netns") / self.space

    def make(self, names: str) -> None:
        """Make the namespace and its cable. names: of all hosts, as /etc/hosts."""
        self.etc.mkdir(parents=True)  # `ip netns exec` puts these files over those of /etc
        (self.etc / "hosts").write_text(names)
        ip("netns", "add", self.space)
        port = ("peer", "name", self.name, "netns", self.network.switch)
        ip("link", "add", "eth0", "netns", self.space, "type", "veth", *port)
        ip("-n", self.network.switch, "link", "set", self.name, "master", "bridge", "up")
        ip("-n", self.space, "link", "set", "lo", "up")
        ip("-n", self.space, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.space, "link", "set", "eth0", "up")
        ip("-n", self.space, "route", "add", "default", "via", "10.71.0.254")  # Ray asks which address faces outside

    def remove(self) -> None:
        """Kill what runs here, and remove the namespace."""
        with contextlib.suppress(SystemExit):
            self.kill()
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True)
        shutil.rmtree(self.etc, ignore_errors=True)

    def start(self, *command: str, cwd: Path, loop: bool = False, log: Path | None = None) -> subprocess.Popen:
        """Start a command here, which writes to `log`. loop: again and again."""
        inside = [
            "ip",
            "netns",
            "exec",
            self.space,
            "unshare",
            "--uts",
            "sh",
            "-c",
            'hostname "$0"; exec "$@"',
            self.name,
        ]
        repeated = ["sh", "-c", FOR_EVER, "sh"] if loop else []
        with (log or self.log).open("ab") as said:
            return subprocess.Popen(
                [*inside, *repeated, *command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                env=self.network.environment, start_new_session=True,
            )  # fmt: skip

    def start_ray(self) -> None:
        """Start this host's Ray node: the head on the first host."""
        first = self.network.hosts[0].address
        role = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"]
            if self.number == 1
            else [f"--address={first}:{PORT}"]
        )
        options = [f"--node-ip-address={self.address}", f"--num-cpus={self.cpus}", "--num-gpus=0"]
        options += [f"--object-store-memory={STORE}", "--disable-usage-stats", "--block"]
        if self.number == 1:
            options.append(f"--temp-dir={self.network.folder / 'ray'}")
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start"]
        self.start(*ray, *role, *options, cwd=self.network.folder, loop=True)

    def pids(self) -> list[int]:
        """Return the processes of this host."""
        return [int(pid) for pid in ip("netns", "pids", self.space).split()]

    def names(self) -> dict[int, str]:
        """Return the processes of this host with their command lines."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found[pid] = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
        return found

    def kill(self) -> None:
        """Kill every process of this host with -9, as a power cut does."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def link(self, up: bool) -> None:
        """Plug this host's cable in or out."""
        ip("-n", self.network.switch, "link", "set", self.name, "up" if up else "down")


class Network:
    """Hosts that reach each other, and nobody else. A context manager: leaving it removes everything."""

    def __init__(self, cpus: list[int]) -> None:
        """cpus: of each host's Ray node. The first host has the head."""
        self.prefix = f"convrec{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))  # paths of sockets must be short
        self.hosts = [Host(self, number, count) for number, count in enumerate(cpus, 1)]
        self.environment = {
            **os.environ, **HEALTH, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }  # fmt: skip

    def __enter__(self) -> "Network":
        try:
            ip("netns", "add", self.switch)
            ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", self.switch, "link", "set", "bridge", "up")
            names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
            for host in self.hosts:
                host.make(f"127.0.0.1 localhost\n{names}")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for host in self.hosts:
            host.remove()
        subprocess.run(["ip", "netns", "del", self.switch], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
