"""Start runs by forking a process that has already imported what they need: milliseconds instead of seconds.

A sweep starts its cells this way, and the tests their commands. A forked run is a process like any other: it has its own
pid, session, environment, working directory, output and exit status. `fork` is the client's side, `main`, at the end, the
server's.

Not for runs on GPUs: CUDA does not survive a fork, and the seconds do not matter there.
"""

import atexit
import contextlib
import importlib
import io
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from convrec_r1.base import processes

MODULES = ("convrec_r1.cli", "convrec_r1.config.checks", "convrec_r1.tasks.run")
"""What every run imports. The first one sets the variables that torch reads when it is imported."""
SUPPORTED = sys.platform == "linux"
"""Not on macOS: its system libraries do not survive a fork."""
ADDRESS = "CONVREC_R1_FORKSERVER"
"""Environment variable with the address of a server, for the processes of a sweep: they share one."""

_STREAMS = (0, 1, 2)  # file descriptors of stdin, stdout and stderr
_NOT_ITS_OWN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that a scheduler or a terminal may send to all of a job. The server stays until its maker ends: it has to tell the
exit status of runs that are still saving."""


class Forked:
    """A process that a `ForkServer` forked. The methods are those of `subprocess.Popen`."""

    def __init__(self, reply: socket.socket) -> None:
        self._reply = reply
        self._received = b""
        self._server_lives = True
        self.returncode: int | None = None
        """Exit status, or minus the signal that killed it; None while it runs."""
        self.pid = self._number()

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs. 1 if the server died first and the status is unknown."""
        if self.returncode is None and self._server_lives and select.select([self._reply], [], [], 0)[0]:
            try:
                self.returncode = self._number()
            except ConnectionError:
                self._server_lives = False
        if self.returncode is None and not self._server_lives and not _lives(self.pid):
            self.returncode = 1
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end. Returns its exit status.

        Raises:
            subprocess.TimeoutExpired: the process still runs after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            if self._server_lives:
                select.select([self._reply], [], [], left)
            else:
                time.sleep(0.05)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        """The next number that the server sends. Raises ConnectionError if it has gone."""
        while b"\n" not in self._received:
            part = self._reply.recv(64)
            if not part:
                raise ConnectionError("the fork server has ended")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return int(line)


def _lives(pid: int) -> bool:
    """Whether a process runs. One that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def fork(
    address: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    stdout: int = 1,
    stderr: int = 2,
    module: str = "convrec_r1",
) -> Forked:
    """Start `python -m MODULE ARGUMENTS` in a new session, forked from the server at `address`.

    Args:
        env: the whole environment. What libraries read from it when they are imported, they have read from the server's.
        cwd: working directory. None: this process's.
        stdout, stderr: file descriptors.

    Raises:
        OSError: there is no server at the address, or it ended before it could fork.
    """
    request = {"module": module, "arguments": list(arguments), "env": dict(env), "cwd": str(cwd or Path.cwd())}
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        with open(os.devnull, "rb") as stdin:
            socket.send_fds(connection, [b"f"], [stdin.fileno(), stdout, stderr])
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        return Forked(connection)
    except BaseException:  # Ctrl-C among them: the server forks nothing for a client that has gone
        connection.close()
        raise


class ForkServer:
    """A server process of its own, ended by `close` and with the process that made it."""

    def __init__(self, modules: Sequence[str] = MODULES, env: Mapping[str, str] | None = None) -> None:
        """
        Args:
            modules: what the server imports, in this order.
            env: its environment. None: this process's.
        """
        # Sockets in a folder that only this user can enter: who can connect can start processes.
        self._folder = tempfile.TemporaryDirectory(prefix="convrec_r1-", ignore_cleanup_errors=True)
        self.address = f"{self._folder.name}/fork"
        read_end, self._alive = os.pipe()
        # It listens before the server runs: requests wait while it imports.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(64)
            inherited = [listener.fileno(), read_end]
            # A session of its own, so that Ctrl-C in the terminal does not reach it. It shares our output: rich looks at it
            # when it is imported, and would show a run in a terminal without colours otherwise.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, inherited), *modules],
                pass_fds=inherited, stdin=subprocess.DEVNULL, start_new_session=True, env=env,
            )  # fmt: skip
        os.close(read_end)

    def close(self) -> None:
        """End the server. What it has forked goes on."""
        os.close(self._alive)
        self._process.wait()
        self._folder.cleanup()


def provide() -> None:
    """Start a server for this process and all that inherit its environment, where it can work and unless there is one."""
    global _provided
    if SUPPORTED and ADDRESS not in os.environ:
        with contextlib.suppress(OSError):  # the path of temporary files may be too long for a socket
            _provided = ForkServer()
            os.environ[ADDRESS] = _provided.address


_provided: ForkServer | None = None


# -- the server's process ----------------------------------------------------------------------------------------------------


def main(listener: int, alive: int, modules: Sequence[str]) -> None:
    for number in _NOT_ITS_OWN:
        signal.signal(number, signal.SIG_IGN)
    before = dict(os.environ)
    for module in modules:
        importlib.import_module(module)
    defaults = {name: value for name, value in os.environ.items() if name not in before}
    request = _serve(socket.socket(fileno=listener), alive, defaults)
    if request is not None:
        sys.argv = [request["module"], *request["arguments"]]
        _run(request["module"])
    atexit._run_exitfuncs()
    os._exit(0)  # at once: it holds the output of its maker


def _run(module: str) -> NoReturn:
    """`python -m MODULE` in a forked process, and its end as Python's own.

    Only the interpreter's last step is left out: it frees every module one by one, which takes seconds after a fork, as each
    page that it touches is copied first.
    """
    status, interrupted = 0, False
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]  waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    if interrupted:  # Python dies of the signal, for whoever waits for it to see
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _serve(listener: socket.socket, alive: int, defaults: Mapping[str, str]) -> dict[str, Any] | None:
    """Fork on request. Returns in each child its request, and None in the server when its maker has ended.

    Args:
        alive: end of a pipe whose other end the maker holds.
        defaults: variables that the imports have set, for children whose environment does not have them.
    """
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    clients: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, wake, alive], [], [])
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            _report_ended(clients)
        if alive in ready:
            shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)  # its maker may have been killed
            return None
        if listener in ready:
            client, _ = listener.accept()
            received = _receive(client)
            if received is None:
                continue
            request, streams = received
            with warnings.catch_warnings():
                # Python warns of other threads. There are OpenBLAS's, and OpenBLAS prepares them for forks.
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    pid = os.fork()
                except OSError:  # no memory or no process left: the client starts the run in another way
                    client.close()
                    for stream in streams:
                        os.close(stream)
                    continue
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for unused in (listener, client, *clients.values()):
                    unused.close()
                for end in (wake, waker, alive):
                    os.close(end)
                _become(request, defaults, streams)
                return request
            clients[pid] = client
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(OSError):  # the client has gone
                client.sendall(b"%d\n" % pid)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """A request and the file descriptors of its streams. None: the client is not there any more."""
    streams: list[int] = []
    try:
        client.settimeout(5.0)
        _, streams, _, _ = socket.recv_fds(client, 1, len(_STREAMS))
        with client.makefile("rb") as lines:
            request = json.loads(lines.read())
        client.settimeout(None)
        gone = select.poll()
        gone.register(client, 0)
        if not gone.poll(0):  # POLLHUP is always asked for
            return request, streams
    except (OSError, ValueError):
        pass
    client.close()
    for stream in streams:
        os.close(stream)
    return None


def _report_ended(clients: dict[int, socket.socket]) -> None:
    for pid in list(clients):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            continue
        _, status = os.waitpid(pid, 0)
        with clients.pop(pid) as client, contextlib.suppress(OSError):
            client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any], defaults: Mapping[str, str], streams: Sequence[int]) -> None:
    """Make this forked process the one that was asked for."""
    os.setsid()
    for number in (*_NOT_ITS_OWN, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, target in zip(streams, _STREAMS, strict=True):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    os.environ.clear()
    os.environ.update({**defaults, **request["env"]})
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=stream.isatty() or stream is sys.stderr)
    atexit.unregister(
        shutil.rmtree
    )  # folders that an import has made, as matplotlib's: they are the server's to remove
    # What has been read from the environment when it was imported.
    if "pytorch_lightning" in sys.modules:
        sys.modules["pytorch_lightning"].utilities.rank_zero_only.rank = processes.launched_rank()
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdigit():
        sys.modules["torch"].set_num_threads(max(1, int(threads)))
    # Two runs must not draw the same names and numbers because they come from the same server.
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
