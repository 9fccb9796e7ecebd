"""Numbered versions of a policy's weights, for workers.

A version is written once: to Ray's object store, where every worker of a node reads the same memory without a copy, or (nixl)
to a copy on the trainer's device, which workers read directly. Either way each worker reads a version when it needs it, also
one that joins late. Whoever needs a version holds a `Version`: Ray frees its memory when nobody does.
"""

# Ray is optional.
# pyright: reportMissingImports=none

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.checksums import Named, SyncCheck
from convrec_r1.rollout.config import NIXL

_PART = 64 << 20
"""Bytes of an object in the store, at least one weight. Where weights are gathered or cast, as much is in memory twice."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Version:
    """Weights in the object store."""

    number: int
    """Of the sync, from 1."""
    parts: tuple[Any, ...] = ()
    """References to lists of (name, dtype, array), or with nixl of (name, tensor)."""
    sums: dict[str, int] | None = None
    """Checksums by layer (`WeightSums`). None: this sync is not checked."""


def publish(weights: Iterable[Named], number: int, check: SyncCheck, *, nixl: bool = False) -> Version:
    """Write weights as version `number`. nixl: keep a copy on their device in place of the object store.

    Raises:
        UserError: the object store has no room.
    """
    import ray
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    put = partial(ray.put, _tensor_transport=NIXL) if nixl else ray.put
    refs, part, size = [], [], 0
    try:
        for name, weight in check.watch(weights):
            # The optimizer changes weights in place, also those that nixl would read.
            part.append((name, weight.detach().clone()) if nixl else (name, _dtype(weight), _array(weight)))
            size += weight.nbytes
            if size >= _PART:
                refs.append(put(part))
                part, size = [], 0
        refs.append(put(part))
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise UserError(
            "Ray's object store has no room for the policy's weights. Give it more (cluster.object_store_gib, or "
            "`ray start --object-store-memory`), or lower rollout.overlap."
        ) from error
    return Version(number, tuple(refs), check.sent)


def read(version: Version) -> Iterator[Named]:
    """Yield the weights of a version. They may lie in shared memory and must not be changed."""
    import ray

    for part in ray.get(list(version.parts)):
        for name, *weight in part:
            if len(weight) == 1:
                yield name, weight[0]
                continue
            dtype, array = weight
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                yield name, torch.from_numpy(array).view(getattr(torch, dtype))


def _dtype(weight: torch.Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _array(weight: torch.Tensor) -> np.ndarray:
    """Return a weight as array, where possible without a copy. NumPy does not know every dtype of torch."""
    weight = weight.detach().cpu().contiguous()
    known = weight.dtype in (torch.float32, torch.float64, torch.float16)
    return (weight if known else weight.view(_INTEGERS[weight.element_size()])).numpy()
