"""The processes of a run, of which the first alone speaks to the servers."""

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Ranks:
    """Gathers what the processes ask, and shares what the first one got or met with, so that none waits for ever.

    Has a process group of its own: rollouts may be sampled in one thread while another trains.
    """

    def __init__(self) -> None:
        self._world: Any = None
        self._group: Any = None

    def join(self) -> None:
        """Called by all of them before anything else."""
        if dist.is_initialized() and dist.get_world_size() > 1 and self._world is not dist.group.WORLD:
            self._world = dist.group.WORLD
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=7))  # a rollout is over when it is over

    def leave(self) -> None:
        """Called by all of them once they are done."""
        if self._joined():
            dist.destroy_process_group(self._group)
        self._world = self._group = None

    @property
    def size(self) -> int:
        return dist.get_world_size() if self._joined() else 1

    @property
    def own(self) -> int:
        return dist.get_rank() if self._joined() else 0

    def gather(self, part: T) -> list[T]:
        """Every process's part."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part, group=self._group)
        return parts

    def share(self, act: Callable[[], T]) -> T:
        """What `act` returns or raises on the first process: on every process."""
        if self.size == 1:
            return act()
        outcome: list[Any] = [None, None]
        if self.own == 0:
            try:
                outcome[0] = act()
            except Exception as error:
                outcome[1] = _portable(error)
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _joined(self) -> bool:
        return self._world is not None and dist.is_initialized() and self._world is dist.group.WORLD


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same, as it can be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
