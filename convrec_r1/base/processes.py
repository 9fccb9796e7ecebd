"""The processes of a run: rank, world size, and how they exchange values.

Before the processes have joined a process group, rank and world size come from the environment or are 0 and 1. This module
imports torch only where a group may exist: questions asked before that stay cheap.
"""

import os
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Environment variables that hold a process's rank. The first one that is set counts, as in Lightning."""
NODES = ("NODE_RANK", "GROUP_RANK")
"""Environment variables that hold the rank of a machine."""


def joined() -> bool:
    """Whether the processes have joined a process group of `torch.distributed`."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """Return the rank of this process in the run. 0 for the first process, and for a run of one process."""
    return _dist().get_rank() if joined() else launched_rank()


def launched_rank() -> int:
    """Return the rank that the environment gives this process, whether or not it has joined a group."""
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name)), 0)


def local_rank() -> int:
    """Return the rank of this process on its machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def world_size() -> int:
    """Return the number of processes in the group; 1 before they have joined one."""
    return _dist().get_world_size() if joined() else 1


def in_group() -> tuple[int, int]:
    """Return rank and world size within the process group; (0, 1) before this process has joined one."""
    return (_dist().get_rank(), _dist().get_world_size()) if joined() else (0, 1)


def is_first() -> bool:
    """Whether this is the first process of the run: the one that writes files and prints."""
    if joined():
        return rank() == 0
    return not any(int(os.environ.get(name) or 0) for name in (*RANKS, *NODES))


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        _dist().barrier()


def gather(part: T, group: Any = None) -> list[T]:
    """Return every process's `part`, by rank. Called by every process of the group.

    Args:
        part: any object that can be pickled.
        group: a process group of `torch.distributed`. None: all processes of the run.
    """
    size = _dist().get_world_size(group) if joined() else 1
    if size == 1:
        return [part]
    parts: list[Any] = [None] * size
    _dist().all_gather_object(parts, part, group=group)
    return parts


def share(act: Callable[[], T], group: Any = None) -> T:
    """Call `act` in the first process. Return its result, or raise its error, in every process.

    Called by every process of the group. No process waits forever when `act` fails.
    """
    if world_size() == 1:
        return act()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = act()
        except Exception as error:
            outcome[1] = _portable(error)
    _dist().broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


class Channel:
    """A process group of its own (gloo), for a thread that exchanges values while another thread trains.

    `join` creates the group, and again after the run's own group was replaced. Every process calls each method. Before `join`
    a process is alone: rank 0 of 1.
    """

    def __init__(self) -> None:
        self._world: Any = None
        self._group: Any = None

    def join(self) -> None:
        if world_size() > 1 and self._world is not _dist().group.WORLD:
            self._world = _dist().group.WORLD
            self._group = _dist().new_group(backend="gloo", timeout=timedelta(days=7))  # a rollout may take hours

    def leave(self) -> None:
        if self._ready():
            _dist().destroy_process_group(self._group)
        self._world = self._group = None

    @property
    def rank(self) -> int:
        return rank() if self._ready() else 0

    @property
    def size(self) -> int:
        return world_size() if self._ready() else 1

    def gather(self, part: T) -> list[T]:
        return gather(part, self._group) if self._ready() else [part]

    def share(self, act: Callable[[], T]) -> T:
        return share(act, self._group) if self._ready() else act()

    def _ready(self) -> bool:
        return self._world is not None and joined() and self._world is _dist().group.WORLD


def _dist() -> Any:
    import torch.distributed

    return torch.distributed


def _portable(error: Exception) -> Exception:
    """The error itself where it can be pickled, else one with the same text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
