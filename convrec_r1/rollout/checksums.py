"""Checksums of weights, which tell whether an engine has exactly the trainer's weights.

Imports nothing of the policy: vLLM's workers use this module too.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Named = tuple[str, Tensor]
_WORD = 1 << 64
_BLOCK = 1 << 18
"""Values that are counted at a time on a CPU."""


class SyncError(RuntimeError):
    """The engine's weights are not the trainer's: its samples must not be trained on."""


class WeightSums:
    """Sums of the bits of weights, by layer: cheap, exact, and independent of how an engine fuses or shards matrices.

    Each weight counts as the integer of its bits, -0 as 0. Copies that differ in one bit differ in their sums. Values that
    trade places within a layer are not detected.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, weight: Tensor) -> None:
        # model.layers.3.mlp.up_proj.weight -> layers.3; model.norm.weight -> norm
        numbered = re.search(r"([^.]+\.\d+)\.", name)
        self._parts[numbered[1] if numbered else name.split(".")[-2]].append(bit_sum(weight))

    def of(self, weights: Iterable[Named]) -> Iterator[Named]:
        """Pass `weights` on and count each of them."""
        for name, weight in weights:
            self.add(name, weight)
            yield name, weight

    def by_layer(self) -> dict[str, int]:
        """Sums in [0, 2**64)."""
        return {layer: int(torch.stack(sums).sum()) % _WORD for layer, sums in self._parts.items()}


class SyncCheck:
    """Compares the weights that were sent with the weights that the engine has, at every `every`-th sync. 0: never."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.syncs = 0
        self._sent: WeightSums | None = None

    def watch(self, weights: Iterable[Named]) -> Iterable[Named]:
        """Pass on the weights of a sync; count them if this sync is checked."""
        checked = bool(self.every) and self.syncs % self.every == 0
        self.syncs += 1
        self._sent = WeightSums() if checked else None
        return self._sent.of(weights) if self._sent else weights

    def compare(self, engine: str, sums: Callable[[], Iterable[dict[str, int]]]) -> None:
        """Compare the sums of the last sync, if it is checked. Raises SyncError where they differ.

        Args:
            engine: the engine's name, for the message.
            sums: called only if needed; returns each worker's sums (`WeightSums.by_layer`).
        """
        if self._sent is not None:
            require_same(engine, self.syncs, self._sent.by_layer(), sums())

    @property
    def sent(self) -> dict[str, int] | None:
        """Sums of the weights of the last sync, by layer. None: it is not checked."""
        return None if self._sent is None else self._sent.by_layer()


def require_same(engine: str, sync: int, sent: dict[str, int], workers: Iterable[dict[str, int]]) -> None:
    """Raise SyncError where an engine's weights are not those that were sent.

    Args:
        engine: its name, for the message.
        sync: number of the sync.
        sent: sums of the weights that were sent, by layer.
        workers: sums of each worker's share.
    """
    found = add_up(workers)
    if _total(sent) == _total(found):
        return
    layers = [layer for layer in sorted({*sent, *found}) if sent.get(layer) != found.get(layer)]
    differ = ", ".join([*layers[:8], "..."] if len(layers) > 8 else layers)
    raise SyncError(
        f"{engine} does not have the trainer's weights after sync {sync}: the sum of their bits is "
        f"{_total(found):#018x} there and {_total(sent):#018x} here. They differ in {differ}. The run stops, because "
        "lists sampled from other weights must not be trained on. The same command resumes from the last checkpoint. "
        "rollout.checksum_every=0 turns this check off."
    )


def add_up(workers: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add the sums of workers that each hold a share of the model (modulo 2**64)."""
    total: dict[str, int] = defaultdict(int)
    for sums in workers:
        for layer, value in sums.items():
            total[layer] = (total[layer] + value) % _WORD
    return dict(total)


def bit_sum(weight: Tensor) -> Tensor:
    """Return the sum of the bits of `weight`'s values as integers: an int64 scalar (modulo 2**64)."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[weight.element_size()]
    whole = weight.contiguous().view(-1)
    # On a CPU the intermediate result then stays in its cache: half the time.
    parts = whole.split(_BLOCK) if whole.device.type == "cpu" and len(whole) else (whole,)
    return torch.stack([(part + 0.0).view(integers).sum(dtype=torch.int64) for part in parts]).sum()


def _total(sums: dict[str, int]) -> int:
    return sum(sums.values()) % _WORD
