"""A policy without its weights, and how it gets them: what a rollout worker is started with."""

import copy
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from convrec_r1.policy.policy import Policy


def skeleton(policy: Policy) -> Policy:
    """Return a copy of `policy` for sampling, whose weights take no memory: they are meta tensors. Buffers are on the CPU.

    LoRA adapters are left out: weights arrive merged (`stream_weights`). The policy must not be sharded yet.
    """
    assert not policy.shard_root
    # deepcopy takes from its memo what it holds. One entry for a shared weight keeps it shared.
    memo: dict[int, Tensor] = {id(b): b.detach().to("cpu", copy=True) for b in policy.buffers()}
    for weight in policy.parameters():
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
    bare = copy.deepcopy(policy, memo)
    if bare.has_lora:
        lm = bare.lm.unload()
        if hasattr(lm, "peft_config"):
            del lm.peft_config
        bare.lm = lm
    if getattr(bare.lm, "is_gradient_checkpointing", False):
        bare.lm.gradient_checkpointing_disable()
    return bare.requires_grad_(False).eval()


def place(policy: Policy, device: torch.device) -> None:
    """Move a skeleton's buffers to `device`. Its weights will be there, too."""
    policy._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def load_weights(policy: Policy, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Give a skeleton its weights, or others than it has.

    On a CPU, tensors of the right dtype are used as they are, without a copy: they must not change afterwards.

    Args:
        weights: names and tensors as from `stream_weights(policy, tied=True)`.
    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    device = policy.newline.device
    slots = _slots(policy)
    missing = set(slots)
    with torch.no_grad():
        for name, tensor in weights:
            if name not in missing:
                raise ValueError(f"The weight {name} is unknown, or came twice.")
            missing.remove(name)
            module, key = slots[name][0]
            old = getattr(module, key)
            if old.shape != tensor.shape:
                raise ValueError(
                    f"The weight {name} has the shape {list(tensor.shape)}; the model's has {list(old.shape)}."
                )
            if device.type != "cpu" and not old.is_meta:
                old.copy_(tensor)
                continue
            new = nn.Parameter(tensor.to(device, old.dtype), requires_grad=False)
            for module, key in slots[name]:
                setattr(module, key, new)
    if missing:
        raise ValueError(f"Weights are missing: {', '.join(sorted(missing)[:8])}.")


def _slots(policy: Policy) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return the places of each weight, by the name under which it is sent: its first one."""
    names: dict[int, str] = {}
    slots: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for path, module in policy.causal_lm.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            slots[names.setdefault(id(parameter), f"{path}.{key}")].append((module, key))
    return slots
