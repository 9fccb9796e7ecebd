"""Apply a function to many blocks: in a loop, or as Ray tasks on all nodes of the cluster, with the same results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_AHEAD = 2
"""Tasks under way for each CPU: the next block waits beside the one that is computed."""


class Blocks(Protocol):
    """A way to apply a function to blocks."""

    def keep(self, make: Callable[[], Iterable[Any]]) -> Iterable[Any]:
        """Return the blocks that `make` yields, for several calls of `map`. In a loop they are made again for each."""
        ...

    def map(self, function: Callable[..., T], blocks: Iterable[Any], *shared: Any) -> Iterator[T]:
        """Yield function(block, *shared) for each block, in the order of the blocks.

        A Ray task gets arrays that are read-only.
        """
        ...


class Loop:
    """One block after another, in this process."""

    def keep(self, make: Callable[[], Iterable[Any]]) -> Iterable[Any]:
        return _MadeAgain(make)

    def map(self, function: Callable[..., T], blocks: Iterable[Any], *shared: Any) -> Iterator[T]:
        return (function(block, *shared) for block in blocks)


LOOP = Loop()


class RayTasks:
    """Each block is a Ray task on one CPU of any node. Ray must be connected.

    A task whose worker or node is lost is run again by Ray.
    """

    def keep(self, make: Callable[[], Iterable[Any]]) -> Iterable[Any]:
        import ray

        return [ray.put(block) for block in make()]

    def map(self, function: Callable[..., T], blocks: Iterable[Any], *shared: Any) -> Iterator[T]:
        import ray

        held = [ray.put(value) for value in shared]  # once; tasks on a node read them without a copy
        given: Any = function
        task = ray.remote(given).options(num_cpus=1)
        ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        under_way: deque[Any] = deque()
        for block in blocks:
            if len(under_way) == ahead:
                yield _result(under_way.popleft())
            under_way.append(task.remote(block, *held))
        while under_way:
            yield _result(under_way.popleft())


class _MadeAgain:
    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


def _result(running: Any) -> Any:
    """Return the result of a task, or raise its own error instead of Ray's."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(running)
    except RayTaskError as error:
        raise error.cause from None
