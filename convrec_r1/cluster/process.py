"""A training process of a group that Ray Train started.

Training runs in a thread of it, on any node. Signals and what is printed go through the desk.
"""

import contextlib
import io
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from convrec_r1.base import progress
from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import Interrupted, stop
from convrec_r1.cluster.desk import End

POLL = 0.3
"""Seconds between questions to the desk."""
LEASE = 30.0
"""Seconds without an answer from the desk after which a training process ends. Where its host was cut off, a group elsewhere
waits for its lock on the run's folder (tasks/run.py)."""
SEEN_WITHIN = 10.0
"""Seconds until a file that another machine wrote must be visible on a shared file system."""


@dataclass(frozen=True)
class Given:
    """What a training process needs before it imports anything of the task."""

    desk: Any
    folder: str
    """The command's working folder."""
    path: list[str]
    """sys.path of the command."""
    environment: dict[str, str]
    token: tuple[str, str]
    """A file that the command wrote, and its content."""
    threads: int
    job: bytes
    """The pickled task."""


def inside() -> bool:
    """Return whether this process is one of a group that Ray Train started. Does not import Ray."""
    return _inside


_inside = False


def device() -> Any:
    """Return the torch.device that Ray gave this process of a group."""
    from ray.train.torch import get_device

    return get_device()


def lightning(strategy: str, sharded: type[Any], **sharding: Any) -> tuple[Any, Any]:
    """Return Lightning's strategy and its environment plugin for the processes of Ray Train's group.

    Args:
        strategy: `trainer.strategy`.
        sharded: class of the strategy for fsdp.
        sharding: options of that class.
    """
    from ray.train.lightning import RayDDPStrategy, RayFSDPStrategy, RayLightningEnvironment

    if strategy == "fsdp":
        return type(sharded.__name__, (sharded, RayFSDPStrategy), {})(**sharding), RayLightningEnvironment()
    return RayDDPStrategy(), RayLightningEnvironment()


def process(config: dict[str, Any]) -> None:
    """Run the job in this process of the group, and report its end."""
    import ray
    from ray.train import get_context

    global _inside
    given: Given = config["given"]
    ended, death, restarts = ray.get(given.desk.begin.remote())
    if ended:  # the group restarted because another process raised what ended the run
        return
    _inside = True
    rank = get_context().get_world_rank()
    progress.console.file = cast(IO[str], _Lines(given.desk))
    for name, value in given.environment.items():
        os.environ.setdefault(name, value)
    sys.path += [entry for entry in given.path if entry not in sys.path]
    try:
        _share(given)
        import torch

        torch.set_num_threads(given.threads)
        job = pickle.loads(given.job)
        notes = (
            [f"Restart {restarts} of the training processes, from the newest checkpoint. Before: {death}."]
            if death
            else []
        )
        with _desk_asked(given.desk, first=rank == 0):
            value = job(notes)
        if rank == 0:
            ray.get(given.desk.end.remote(End.done, value))
    except UserError as error:
        ray.get(given.desk.end.remote(End.wrong, str(error)))
        raise
    except Interrupted as error:
        ray.get(given.desk.end.remote(End.interrupted, (error.number, str(error))))
    except Exception as error:
        # With its trace in the message: Ray Train passes on the exception without it.
        raise RuntimeError(f"{error}\n{traceback.format_exc()}") from None
    finally:
        progress.console.file.flush()


def _share(given: Given) -> None:
    """Change to the command's folder. Raise a UserError if this node does not see what the command wrote."""
    file, content = Path(given.token[0]), given.token[1]
    end = time.monotonic() + SEEN_WITHIN
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.2)
    seen = file.read_text(encoding="utf-8") if file.exists() else None
    if seen != content or not Path(given.folder).is_dir():
        missing = given.folder if seen == content else file.parents[1]
        raise UserError(
            f"The node {socket.gethostname()} does not see {missing} of the machine on which the command runs. Training on "
            "several nodes needs a file system that all of them share, under the same path: outputs=DIR on it, and the command "
            "started from a folder on it."
        )
    os.chdir(given.folder)


@contextlib.contextmanager
def _desk_asked(desk: Any, *, first: bool) -> Iterator[None]:
    """Ask the desk all the time while the block runs: the first process for signals, all whether they still reach it."""
    ended = threading.Event()

    def listen() -> None:
        answered = time.monotonic()
        while not ended.wait(POLL):
            number = _poll(desk, stop.deferring if first else None)
            if number is not None:
                answered = time.monotonic()
                stop.number = number or stop.number
            elif time.monotonic() - answered > LEASE and not ended.is_set():
                _leave()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LEASE)


def _poll(desk: Any, deferring: bool | None) -> int | None:
    """Return the signal that the run got (0: none). None: the desk was not reached."""
    import ray

    with contextlib.suppress(Exception):  # of many kinds, where hosts or Ray's servers are gone
        return ray.get(desk.poll.remote(deferring), timeout=LEASE)
    return None


def _leave() -> None:
    """End this process at once: Ray has started another group by now, or will."""
    print(f"The command was not reached for {LEASE:g} s: this training process ends.", file=sys.stderr, flush=True)
    os._exit(1)


class _Lines(io.TextIOBase):
    """A file that sends whole lines to the desk."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._rest = desk, ""
        self._lock = threading.Lock()

    def write(self, text: str, /) -> int:
        with self._lock:
            whole, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._desk.say.remote(whole + newline)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is sent when it is whole."""

    def writable(self) -> bool:
        return True
