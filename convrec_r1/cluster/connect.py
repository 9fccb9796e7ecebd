"""Start Ray on this machine or join a cluster, once per process; say what it has, and refuse what cannot work."""

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import held
from convrec_r1.cluster import reaper
from convrec_r1.cluster.config import AUTO, ClusterConfig, installed, missing
from convrec_r1.cluster.resources import Bundle, Node, fit_together, listed, too_little
from convrec_r1.cluster.versions import differences, report, versions

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TCP_TIMEOUT = 5.0
"""Seconds until HOST:PORT must accept a connection."""
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a gRPC client sends first, with empty settings (RFC 9113, section 3.4). Ray's server answers with its own settings: a
frame of type 4."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # what people train is not reported to anybody
    "RAY_worker_niceness": "0",  # 15 by default: the trainer, which waits for workers, would take their CPUs
}
"""Environment of Ray's processes."""


class Connection:
    """The Ray that this process uses. A context manager: leaving it closes it."""

    def __init__(self, cfg: ClusterConfig) -> None:
        self.cfg = cfg
        self._open = True

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        return [
            Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0))
            for n in alive
        ]

    def __str__(self) -> str:
        import ray
        from ray._private.worker import get_dashboard_url

        how = f"joined at {self.cfg.address}" if self.cfg.address else "started on this machine"
        page = get_dashboard_url() if self.cfg.dashboard else None
        return f"Ray {ray.__version__}, {how}: {listed(self.nodes())}{f'; dashboard: http://{page}' if page else ''}"

    def require(self, bundles: Sequence[Bundle]) -> None:
        """Check that the cluster can hold all `bundles` at once, whoever uses it now. Waits up to `cluster.wait` seconds.

        Raises:
            UserError: it cannot. The message says what is asked and what there is.
        """
        end = time.monotonic() + self.cfg.wait
        while not fit_together(bundles, nodes := self.nodes()):
            if time.monotonic() >= end:
                raise UserError(too_little(bundles, nodes, self.cfg.wait))
            time.sleep(min(1.0, self.cfg.wait))

    def close(self) -> None:
        """Disconnect from Ray, and end it if this process started it. Does nothing where others still use the connection."""
        if self._open:
            self._open = False
            _release()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Started:
    """What this process has to undo when the last connection is closed."""

    def __init__(self) -> None:
        self.users = 0
        self.folder: str | None = None
        """Folder of the Ray that this process started. None: it joined one."""
        self.reaper: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str | None] = {}
        """Variables that were set, with their values before."""


_lock = threading.RLock()
_started: _Started | None = None
"""None: Ray is not connected, or somebody else connected it: a Ray worker's process, or a program of the user's."""


def connect(cfg: ClusterConfig) -> Connection:
    """Return a connection of this process to Ray: started, joined, or the one that a Ray worker or an earlier call has.

    Called first in the main thread: what Ray starts here ends with the thread that starts it.

    Raises:
        UserError: Ray is not installed, does not answer, or its nodes run other versions.
    """
    global _started
    if not installed():
        raise UserError(missing())
    with _lock:
        if _started is None and not _initialized():
            made = _Started()
            try:
                _start(cfg, made) if cfg.address is None else _join(cfg, made)
            except BaseException:
                _undo(made)
                raise
            _started = made
        if _started is not None:
            _started.users += 1
        connection = Connection(cfg)
    return connection


def _initialized() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _release() -> None:
    global _started
    with _lock:
        if _started is None:
            return
        _started.users -= 1
        if _started.users == 0:
            made, _started = _started, None
            _undo(made)


def _undo(made: _Started) -> None:
    """Disconnect, end the Ray that this process started, and restore the environment."""
    if (ray := sys.modules.get("ray")) is not None:
        with contextlib.suppress(Exception):  # it may have died
            ray.shutdown(wait_for_processes=True)
    if made.folder is not None:
        reaper.end(made.folder)
    if made.reaper is not None:
        made.reaper.kill()
        made.reaper.wait()
    for name, value in made.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _start(cfg: ClusterConfig, made: _Started) -> None:
    """Start a Ray on this machine that ends with this process, however it ends."""
    folder = made.folder = os.path.realpath(tempfile.mkdtemp(prefix="convrec-ray-", dir=_short_folder()))
    command = [sys.executable, "-I", reaper.__file__, str(os.getpid()), folder]
    made.reaper = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    # Processes of Ray import this package from where this process has it, not from where another copy is installed.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    _set(made, {"PYTHONPATH": path})
    # A token of its own: other users of this machine cannot run code in it, and Ray writes none into the home folder.
    _set(made, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()})
    on_loopback = cfg.host == LOOPBACK
    if on_loopback:
        # Ray replaces 127.0.0.1 by an address that others reach, unless it is told that this machine is no cluster.
        _set(made, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
    store = None if cfg.object_store_gib is None else int(cfg.object_store_gib * 2**30)
    options: dict[str, Any] = {} if on_loopback else {"_node_ip_address": cfg.host}
    try:
        _init(
            made,
            cfg.start_timeout,
            address="local",
            num_cpus=cfg.cpus,
            num_gpus=cfg.gpus,
            object_store_memory=store,
            include_dashboard=cfg.dashboard,
            dashboard_host=cfg.host,
            _temp_dir=folder,
            **options,
        )
    except TimeoutError as error:
        raise UserError(
            f"Ray did not start on this machine {error}. Give it longer, or look for what is slow."
        ) from error
    except Exception as error:  # of many kinds: ValueError of a small store, plain Exception of the dashboard
        raise UserError(f"Ray did not start on this machine: {first_line(error)}{_advice(cfg, error)}") from error


def _join(cfg: ClusterConfig, made: _Started) -> None:
    """Join a Ray that runs, and compare the versions of its nodes with this process's."""
    assert cfg.address is not None
    if cfg.address != AUTO:
        _knock(cfg.address, cfg.start_timeout)
    try:
        with held():  # Ray cannot be imported again where that was interrupted
            _show_token(cfg.address)
            _init(made, cfg.start_timeout, address=cfg.address)
    except TimeoutError as error:
        raise UserError(f"cluster.address={cfg.address}: Ray did not let this process join {error}.") from error
    except Exception as error:
        raise UserError(f"cluster.address={cfg.address}: {_refusal(cfg.address, error)}") from error
    import ray
    from ray.exceptions import GetTimeoutError

    mine, nodes = versions(), Connection(cfg).nodes()
    try:
        found = ray.get(report([node.id for node in nodes]), timeout=cfg.start_timeout)
    except GetTimeoutError as error:
        raise UserError(
            f"cluster.address={cfg.address}: not every node of {listed(nodes)} ran a task within {cfg.start_timeout:g} s "
            "(cluster.start_timeout). Look at the logs of Ray there."
        ) from error
    except Exception as error:
        raise UserError(f"cluster.address={cfg.address}: a node could not run a task: {first_line(error)}") from error
    wrong = [line for node, there in zip(nodes, found, strict=True) for line in differences(node.address, mine, there)]
    if wrong:
        lines = "\n".join(f"  - {line}" for line in wrong)
        raise UserError(f"Nodes of the cluster run other versions than this process:\n{lines}\nInstall the same there.")


def _init(made: _Started, within: float, **options: Any) -> None:
    """Call ray.init, with signals handled as before. Raises TimeoutError after `within` seconds."""
    _set(made, SETTINGS)
    with held():  # Ray cannot be imported again where that was interrupted
        import ray
        from ray._private import auto_init_hook, utils, worker

        # A thread of Ray's that calls it after the end would join, or start, any Ray of this machine.
        auto_init_hook.enable_auto_connect = False
        # Ray prints a paragraph about every process that dies. Who uses Ray here says in a line what it means for the run.
        worker.print_to_stdstream = lambda *_, **__: None
        utils.set_sigterm_handler = lambda *_: None  # it would exit in the middle of whatever runs
        with _limited(within):
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


class _TooLate(BaseException):
    """Not an Exception, which Ray would take for a try that failed."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer. In the main thread only: Python interrupts no other.

    Ray has limits of its own for each part of its start, up to minutes in all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, late)
    # Again and again: an exception is lost where compiled code of Ray calls Python.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    except _TooLate:
        raise TimeoutError(f"within {seconds:g} s (cluster.start_timeout)") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _set(made: _Started, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        made.environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value


@functools.cache
def _token() -> str:
    """Return the token of every Ray that this process starts: Ray reads it once in a process."""
    return secrets.token_hex(32)


def _short_folder() -> str:
    """Return the folder for temporary files, or /tmp if its path is long: those of sockets have 107 characters at most."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 20 else "/tmp"


def _knock(address: str, timeout: float) -> None:
    """Raise a UserError if nobody, or something else than Ray, answers at HOST:PORT. Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    advice = (
        f"Start Ray on the head node with `ray start --head --port={port}`, or leave cluster.address out to start it on this "
        "machine."
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), min(timeout, TCP_TIMEOUT)) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false"):
                return
            connection.sendall(HTTP2)
            answer = connection.recv(9)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise UserError(f"cluster.address={address}: nobody answers there ({why}). {advice}") from error
    if answer[3:4] != b"\x04":
        raise UserError(f"cluster.address={address}: what answers there is not Ray. {advice}")


def _show_token(address: str) -> None:
    """Raise Ray's AuthenticationError if it wants another token: `ray.init` would try twenty times, and not say so."""
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    found = canonicalize_bootstrap_address(address) if address == AUTO else address
    if found is not None:  # else nothing runs here, which ray.init says
        GcsClient(address=found)


def _refusal(address: str, error: Exception) -> str:
    """Return why Ray did not let this process join, and what to do."""
    from ray.exceptions import AuthenticationError

    text = first_line(error)
    if any(isinstance(cause, AuthenticationError) for cause in _chain(error)):
        return (
            "the Ray there wants a token, or another one. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token that the "
            "cluster was started with: `ray get-auth-token` on the head node prints it."
        )
    if "ersion mismatch" in str(error):
        return f"its Ray or Python is another version than this process's. {text}"
    if address == AUTO:
        return (
            f"no Ray was found on this machine. Start one with `ray start --head`, or leave cluster.address out. {text}"
        )
    return f"this machine did not join. Start Ray on it first with `ray start --address={address}`. {text}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _advice(cfg: ClusterConfig, error: Exception) -> str:
    return (
        " pip install 'ray[default]', or cluster.dashboard=false."
        if cfg.dashboard and "dashboard" in str(error)
        else ""
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
