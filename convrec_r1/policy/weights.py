"""The full weights of a policy: streamed to an engine, gathered for a forward pass, saved to a folder."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor

from convrec_r1.policy.policy import Policy


@torch.no_grad()
def stream_weights(
    policy: Policy, *, dtype: torch.dtype | None = None, tied: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of each weight, with name and shape as in the model's checkpoint, layer by layer.

    LoRA adapters are merged, shards gathered and values cast one weight at a time, so the extra memory is one tensor (under
    FSDP one layer). Under FSDP every process must consume the whole stream.

    Args:
        policy: its weights do not change.
        dtype: dtype of the tensors. None: as in the policy.
        tied: whether a head that shares its weights with the embeddings is left out. False: yield it under its own name.
    """
    head = None
    if not tied and tied_head(policy):
        head = next(f"{name}.weight" for name, module in policy.causal_lm.named_modules() if module is policy.head)
    embeddings = policy.causal_lm.get_input_embeddings()
    sent: dict[int, Tensor] = {}
    for gathered, modules in _units(policy):
        with gathered:
            for name, module in modules:
                for key, parameter in module.named_parameters(recurse=False):
                    if id(parameter) in sent:
                        continue  # a weight that two modules share is sent under its first name
                    sent[id(parameter)] = parameter  # keeps the tensor alive: its id stays unique
                    weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                    if name.endswith(".base_layer") and key == "weight":
                        layer: Any = policy.causal_lm.get_submodule(name.removesuffix(".base_layer"))
                        weight = weight + sum(map(layer.get_delta_weight, layer.active_adapters), 0.0)
                    weight = weight.detach().to(dtype or weight.dtype)
                    yield f"{name.removesuffix('.base_layer')}.{key}", weight
                    if head and module is embeddings:
                        yield head, weight


def tied_head(policy: Policy) -> bool:
    """Return whether head and embeddings share their weights."""
    return policy.head.weight is policy.causal_lm.get_input_embeddings().weight


@contextlib.contextmanager
def whole_weights(policy: Policy) -> Iterator[None]:
    """Let every process hold the full weights while the block runs. Needed under FSDP for forward passes outside training.

    In the block, forward passes of a process are its own business. FSDP would free each layer after its first pass and gather
    it again for the next, from processes that may make fewer passes.
    """
    if not policy.shard_root:
        yield
        return
    root = policy.shard_root[0]
    with FSDP.summon_full_params(root, writeback=False), contextlib.ExitStack() as stack:
        for unit in FSDP.fsdp_modules(root):
            unit.__dict__["forward"] = functools.partial(type(unit.module).__call__, unit.module)
            stack.callback(unit.__dict__.pop, "forward")
        yield


def save_policy(policy: Policy, folder: Path, *, first: bool) -> None:
    """Save the policy in the first process. Under FSDP every process must call this: shards are gathered layer by layer."""
    weights = None
    if policy.shard_root:
        weights = {name: weight.to("cpu", copy=True) for name, weight in stream_weights(policy) if first}
    elif policy.has_lora and first:  # merged one by one, without a copy of the whole model
        weights = {name: weight.cpu() for name, weight in stream_weights(policy)}
    if first:
        policy.save(folder, weights=weights)


def _units(policy: Policy) -> Iterator[tuple[contextlib.AbstractContextManager, list[tuple[str, nn.Module]]]]:
    """Yield modules in the groups that FSDP gathers together, without LoRA adapters."""
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
        # During the forward pass of a unit its parameters are gathered already.
        if unit is None or unit.training_state.name != "IDLE":
            yield contextlib.nullcontext(), modules
        else:
            yield FSDP.summon_full_params(unit, recurse=False, writeback=False), modules
