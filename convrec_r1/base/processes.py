"""Facts about the processes of a distributed run, and the few things they do together."""

from typing import Any, TypeVar

T = TypeVar("T")


def rank() -> int:
    """Return this process's rank, 0 for the first one. Known before the processes have found each other."""
    from pytorch_lightning.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0)  # Lightning keeps it on the function


def is_first() -> bool:
    """Return whether this is the first process of the run, the one that writes files."""
    return rank() == 0


def world_size() -> int:
    """Return the number of processes that have found each other. 1 where there is no process group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Return every process's value, in the order of ranks, on every process. Values are pickled."""
    import torch.distributed as dist

    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
