"""Start runs by forking a server process that has the imports done: milliseconds instead of seconds.

Sweeps start their runs this way, and tests their commands. A forked run has its own pid, session, environment, working
directory, streams and exit status. `multiprocessing`'s fork server gives a child none of these but the pid, and only the
process that started it can use it; the workers of hydra/launcher=ray share one server.

CPU only: CUDA does not work after a fork.
"""

import atexit
import contextlib
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from convrec_r1.base import processes

MODULES = (
    *("convrec_r1.cli", "convrec_r1.config.checks", "convrec_r1.tasks.run", "convrec_r1.tasks.train"),
    *("convrec_r1.tasks.evaluate", "convrec_r1.doctor.task", "convrec_r1.studies.compare", "convrec_r1.run.tracker"),
)
"""Modules that most runs import. The first one sets environment variables that torch reads at import."""
SUPPORTED = sys.platform == "linux"
"""False on macOS, whose system libraries do not work after a fork."""
ADDRESS = "CONVREC_R1_FORKSERVER"
"""Environment variable with the address of the server that the processes of a sweep share."""

_STREAMS = (0, 1, 2)  # file descriptors of stdin, stdout and stderr
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that a scheduler or terminal sends to all processes of a job. The server ignores them: it must report the exit
status of runs that are still saving."""


class Forked:
    """A process forked by a `ForkServer`, with the methods of `subprocess.Popen`."""

    def __init__(self, reply: socket.socket) -> None:
        """reply: connection on which the server sends the pid, then the exit status. The process holds it open as well."""
        self._reply = reply
        self._lines = reply.makefile("rb")
        self.returncode: int | None = None
        """Exit status, or minus the number of the signal that killed it. None while it runs."""
        self.pid = self._number()

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs. It is 1 if the server died before it could report it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end. Return its exit status.

        Raises:
            subprocess.TimeoutExpired: the process still runs after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._reply], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            try:
                self.returncode = self._number()
            except ConnectionError:  # closed by the server and by the process
                self.returncode = 1
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        """Return the next number on the connection. Raises ConnectionError if it is closed."""
        if line := self._lines.readline():
            return int(line)
        raise ConnectionError("the fork server has ended")


def fork(
    address: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    stdin: int | None = None,
    stdout: int = 1,
    stderr: int = 2,
    module: str = "convrec_r1",
) -> Forked:
    """Start `python -m MODULE ARGUMENTS` in a new session, forked from the server at `address`.

    Args:
        address: socket of the server.
        arguments: arguments of the module.
        env: the whole environment. Libraries have read the server's environment at import.
        cwd: working directory. None: that of this process.
        stdin: file descriptor. None: empty.
        stdout: file descriptor.
        stderr: file descriptor.
        module: module to run.
    Raises:
        OSError: there is no server at the address, or it ended before it forked.
    """
    request = {"module": module, "arguments": list(arguments), "env": dict(env), "cwd": str(cwd or Path.cwd())}
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        with open(os.devnull, "rb") as empty:
            streams = [empty.fileno() if stdin is None else stdin, stdout, stderr]
            socket.send_fds(connection, [b"f"], streams)
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        return Forked(connection)
    except BaseException:  # also Ctrl-C: the server forks nothing for a closed connection
        connection.close()
        raise


def start(
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    forked: bool,
    cwd: Path | str | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Forked | subprocess.Popen[bytes]:
    """Start `python -m convrec_r1 ARGUMENTS` in a new process and session.

    Args:
        arguments: arguments of the command.
        env: the whole environment. `ADDRESS` in it names the server.
        forked: fork it, which saves the time of the imports, if the server is on this machine and runs.
        cwd: working directory. None: that of this process.
        stdin: file descriptor. None: that of this process, empty if it is forked.
        stdout: file descriptor. None: that of this process.
        stderr: file descriptor. None: that of this process.
    """
    if forked and (address := env.get(ADDRESS)):
        with contextlib.suppress(OSError):  # the server is on another machine, or was killed
            out, err = 1 if stdout is None else stdout, 2 if stderr is None else stderr
            return fork(address, arguments, env=env, cwd=cwd, stdin=stdin, stdout=out, stderr=err)
    command = [sys.executable, "-m", "convrec_r1", *arguments]
    return subprocess.Popen(
        command, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    )


class ForkServer:
    """A fork server in a process of its own. It ends with `close`, or with the process that started it."""

    def __init__(self, modules: Sequence[str] = MODULES, env: Mapping[str, str] | None = None) -> None:
        """
        Args:
            modules: modules that the server imports, in this order.
            env: environment of the server. None: that of this process.
        """
        # A folder that only this user can enter: whoever can connect can start processes.
        self._folder = tempfile.TemporaryDirectory(prefix="convrec_r1-", ignore_cleanup_errors=True)
        self.address = f"{self._folder.name}/fork"
        read_end, self._alive = os.pipe()
        # The socket listens before the server runs: requests wait during the imports.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(64)
            inherited = [listener.fileno(), read_end]
            # A new session, so that Ctrl-C in the terminal does not reach it. It keeps this process's output because rich
            # checks at import whether that is a terminal with colours.
            command = [sys.executable, "-m", __name__, *map(str, inherited), *modules]
            self._process = subprocess.Popen(
                command, pass_fds=inherited, stdin=subprocess.DEVNULL, start_new_session=True, env=env
            )
        os.close(read_end)

    def close(self) -> None:
        """End the server. Processes that it forked keep running."""
        os.close(self._alive)
        self._process.wait()
        self._folder.cleanup()


def provide() -> None:
    """Start a server for this process and its children (`ADDRESS`), unless there is one or the system does not support it."""
    global _provided
    if SUPPORTED and ADDRESS not in os.environ:
        with contextlib.suppress(OSError):  # the path of a temporary folder may be too long for a socket
            _provided = ForkServer()
            os.environ[ADDRESS] = _provided.address


_provided: ForkServer | None = None


# -- the server process ------------------------------------------------------------------------------------------------------


def main(listener: int, alive: int, modules: Sequence[str]) -> None:
    """Run the server, and in each forked process the module that was asked for.

    Args:
        listener: file descriptor of the listening socket.
        alive: end of a pipe that is closed when the process that started the server ends.
        modules: modules to import first.
    """
    for number in _IGNORED:
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
    os._exit(0)  # at once: this process holds the output of the one that started it


def _run(module: str) -> NoReturn:
    """Run `python -m MODULE` and exit as Python does.

    Only the interpreter's last step is skipped. It frees all modules, which takes seconds in a forked process because every
    page that it writes to is copied.
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
    threading._shutdown()  # type: ignore[attr-defined]  # waits for non-daemon threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or no reader
            stream.flush()
    if interrupted:  # Python ends by the signal itself, so that the exit status shows it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _serve(listener: socket.socket, alive: int, defaults: Mapping[str, str]) -> dict[str, Any] | None:
    """Fork on request. Return the request in each child, and None in the server when `alive` is closed.

    defaults: environment variables that the imports set, for children that do not have them.
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
            shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)  # a killed process does not clean up
            return None
        if listener in ready:
            client, _ = listener.accept()
            received = _receive(client)
            if received is None:
                continue
            request, streams = received
            with warnings.catch_warnings():
                # Python warns about other threads. They belong to OpenBLAS, which handles forks.
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    pid = os.fork()
                except OSError:  # out of memory or processes: the client starts the run in another way
                    _close(client, streams)
                    continue
            if pid == 0:
                signal.set_wakeup_fd(-1)
                client.detach()  # stays open until this process ends, which tells the client if the server is killed
                for unused in (listener, *clients.values()):
                    unused.close()
                for end in (wake, waker, alive):
                    os.close(end)
                _become(request, defaults, streams)
                return request
            clients[pid] = client
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(OSError):  # the client has ended
                client.sendall(b"%d\n" % pid)


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return a request and the file descriptors of its streams. None: the client has ended."""
    streams: list[int] = []
    try:
        client.settimeout(5.0)
        _, streams, _, _ = socket.recv_fds(client, 1, len(_STREAMS))
        with client.makefile("rb") as lines:
            request = json.loads(lines.read())
        client.settimeout(None)
        gone = select.poll()
        gone.register(client, 0)
        if not gone.poll(0):  # POLLHUP is always reported
            return request, streams
    except (OSError, ValueError):
        pass
    _close(client, streams)
    return None


def _close(client: socket.socket, streams: Sequence[int]) -> None:
    client.close()
    for stream in streams:
        os.close(stream)


def _report_ended(clients: dict[int, socket.socket]) -> None:
    """Send the exit status of each ended child to its client."""
    for pid in list(clients):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with clients.pop(pid) as client, contextlib.suppress(OSError):
                client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any], defaults: Mapping[str, str], streams: Sequence[int]) -> None:
    """Give this forked process the session, streams, folder and environment of its request."""
    os.setsid()
    for number in (*_IGNORED, signal.SIGCHLD):
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
    atexit.unregister(shutil.rmtree)  # temporary folders made at import, as by matplotlib, belong to the server
    # Values that were read from the environment at import:
    if "pytorch_lightning" in sys.modules:
        sys.modules["pytorch_lightning"].utilities.rank_zero_only.rank = processes.launched_rank()
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdigit():
        sys.modules["torch"].set_num_threads(max(1, int(threads)))
    # Runs from one server must not draw the same random numbers. (Python reseeds `random` itself after a fork.)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
