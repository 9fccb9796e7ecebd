"""The policy's weights as a stream of plain tensors, and sums of their bits that tell whether two copies are the same."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor

from convrec_r1.policy import Policy
from convrec_r1.rollout.base import SyncError

Named = tuple[str, Tensor]
_WORD = 1 << 64


@torch.no_grad()
def stream_weights(policy: Policy, *, dtype: torch.dtype | None = None, tied: bool = True) -> Iterator[Named]:
    """(name, tensor) of every weight, named and shaped as in the model's checkpoint, layer after layer.

    One tensor (under FSDP one layer) at a time is more than the policy itself holds: LoRA is merged, shards are gathered
    and `dtype` is cast to as the stream advances. Where training is sharded, every process must draw the whole stream.
    tied: False sends the head's weights under their own name too where the model shares them with its embeddings.
    """
    head = None if tied or not tied_head(policy) else head_name(policy)
    embeddings = policy.causal_lm.get_input_embeddings()
    sent: dict[int, Tensor] = {}
    for gathered, modules in _units(policy):
        with gathered:
            for name, module in modules:
                for key, parameter in module.named_parameters(recurse=False):
                    if id(parameter) in sent:
                        continue  # a weight that two modules share goes out under its first name
                    sent[id(parameter)] = parameter  # held, so that its id stays its own
                    weight = _whole(parameter)
                    if name.endswith(".base_layer") and key == "weight":
                        weight = weight + _lora(policy, name)
                    weight = weight.detach().to(dtype or weight.dtype)
                    yield f"{name.removesuffix('.base_layer')}.{key}", weight
                    if head and module is embeddings:
                        yield head, weight


def tied_head(policy: Policy) -> bool:
    """Whether the head's weights are those of the embeddings."""
    return policy.head.weight is policy.causal_lm.get_input_embeddings().weight


def head_name(policy: Policy) -> str:
    return next(f"{name}.weight" for name, module in policy.causal_lm.named_modules() if module is policy.head)


class WeightSums:
    """Sums of the bits of weights, by layer: cheap, exact, and blind to how an engine fuses or shards matrices.

    Each weight counts as the integer of its bits, -0 as 0. Two copies that differ in a single bit differ in their sums;
    values that trade places within a layer do not show.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, weight: Tensor) -> None:
        self._parts[_layer(name)].append(bit_sum(weight))

    def of(self, weights: Iterable[Named]) -> Iterator[Named]:
        """`weights` passed on, each counted on its way."""
        for name, weight in weights:
            self.add(name, weight)
            yield name, weight

    def by_layer(self) -> dict[str, int]:
        """Sums in [0, 2**64)."""
        return {layer: int(torch.stack(sums).sum()) % _WORD for layer, sums in self._parts.items()}


class SyncCheck:
    """Compares what was sent with what the engine has, every so many syncs."""

    def __init__(self, every: int) -> None:
        """every: syncs from one comparison to the next; 0: never."""
        self.every = every
        self.syncs = 0
        self._sent: WeightSums | None = None

    def watch(self, weights: Iterable[Named]) -> Iterable[Named]:
        """The weights of a sync on their way to the engine, counted if it is to be checked."""
        checked = bool(self.every) and self.syncs % self.every == 0
        self.syncs += 1
        self._sent = WeightSums() if checked else None
        return self._sent.of(weights) if self._sent else weights

    def compare(self, engine: str, sums: Callable[[], Iterable[dict[str, int]]]) -> None:
        """sums: what each of the engine's workers counts, asked for only if needed. Raises SyncError."""
        if self._sent is None:
            return
        sent, found = self._sent.by_layer(), add_up(sums())
        if _total(sent) == _total(found):
            return
        layers = [layer for layer in sorted({*sent, *found}) if sent.get(layer) != found.get(layer)]
        differ = ", ".join([*layers[:8], "..."] if len(layers) > 8 else layers)
        raise SyncError(
            f"{engine} does not have the trainer's weights after sync {self.syncs}: the sum of their bits is "
            f"{_total(found):#018x} there and {_total(sent):#018x} here. They differ in {differ}. "
            "What it would sample must not be trained on, so the run stops; started again, it goes on from its last "
            "checkpoint. rollout.checksum_every=0 turns this check off."
        )


def add_up(workers: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums of the whole model from those of its shares (modulo 2**64)."""
    total: dict[str, int] = defaultdict(int)
    for sums in workers:
        for layer, value in sums.items():
            total[layer] = (total[layer] + value) % _WORD
    return dict(total)


def bit_sum(weight: Tensor) -> Tensor:
    """Sum of the bits of `weight`'s values as integers, an int64 scalar (modulo 2**64)."""
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[weight.element_size()]
    return (weight + 0.0).contiguous().view(integers).sum(dtype=torch.int64)


def whole_weights(policy: Policy) -> contextlib.AbstractContextManager:
    """Under FSDP all of the policy's weights gathered on every process, for what happens outside a training step."""
    if not policy.shard_root:
        return contextlib.nullcontext()
    return FSDP.summon_full_params(policy.shard_root[0], writeback=False)


def save_policy(policy: Policy, folder: Path, *, first: bool) -> None:
    """`Policy.save` by the first process. Under FSDP every process must take part: layer by layer, shards go to the first."""
    weights = None
    if policy.shard_root:
        weights = {name: weight.to("cpu", copy=True) for name, weight in stream_weights(policy) if first}
    if first:
        policy.save(folder, weights=weights)


def _total(sums: dict[str, int]) -> int:
    return sum(sums.values()) % _WORD


def _layer(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> layers.3; model.norm.weight -> norm."""
    numbered = re.search(r"([^.]+\.\d+)\.", name)
    return numbered[1] if numbered else name.split(".")[-2]


def _units(policy: Policy) -> Iterator[tuple[contextlib.AbstractContextManager, list[tuple[str, nn.Module]]]]:
    """Modules of the causal LM that are gathered together, adapters left out."""
    units: dict[int, tuple[FSDP | None, list[tuple[str, nn.Module]]]] = {}

    def walk(name: str, module: nn.Module, unit: FSDP | None) -> None:
        if isinstance(module, FSDP):
            walk(name, module.module, module)
            return
        units.setdefault(id(unit), (unit, []))[1].append((name, module))
        for key, child in module.named_children():
            if not key.startswith("lora_"):
                walk(f"{name}.{key}" if name else key, child, unit)

    root = policy.shard_root[0] if policy.shard_root else None
    assert root is None or isinstance(root, FSDP)
    walk("", policy.causal_lm, root)
    for unit, modules in units.values():
        yield _gathered(unit), modules


def _gathered(unit: FSDP | None) -> contextlib.AbstractContextManager:
    # Inside the unit's own forward its parameters are whole already.
    if unit is None or unit.training_state.name != "IDLE":
        return contextlib.nullcontext()
    return FSDP.summon_full_params(unit, recurse=False, writeback=False)


def _lora(policy: Policy, base: str) -> Tensor | float:
    """What LoRA adds to the weight of the layer `base`."""
    layer: Any = policy.causal_lm.get_submodule(base.removesuffix(".base_layer"))
    return sum((layer.get_delta_weight(adapter) for adapter in layer.active_adapters), 0.0)


def _whole(parameter: Tensor) -> Tensor:
    """A DTensor's shards gathered (a collective); any other tensor as it is."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
