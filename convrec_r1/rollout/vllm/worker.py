"""Code that runs inside vLLM's workers: sums of the weights that its kernels use, and loading of weights from a file.

vLLM imports this module by name (`worker_extension_cls`); the trainer never does.
"""

# vLLM is optional.
# pyright: reportMissingImports=none

from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from convrec_r1.rollout.checksums import WeightSums

ROWS = 512
"""Rows of the unit matrix that are multiplied at a time to read a packed matrix back."""


class WeightSync:
    """Methods that vLLM adds to its workers, for `collective_rpc`."""

    model_runner: Any  # these two are the worker's own
    reload_weights: Any

    def weight_sums(self) -> dict[str, int]:
        """Return sums of the bits of this worker's share of the weights, by layer (`WeightSums`).

        A weight that every worker holds counts on the first one only: added up over workers, the sums are the model's.
        """
        sums = WeightSums()
        with torch.no_grad():
            for name, weight in _shares(self.model_runner.get_model(), get_tensor_model_parallel_rank()):
                sums.add(name, weight)
        return sums.by_layer()

    def load_file(self, path: str, names: list[str]) -> None:
        """Load weights from a safetensors file. names: in the order of loading."""
        with safe_open(path, framework="pt") as file:
            self.reload_weights(weights_iterator=((name, file.get_tensor(name)) for name in names))


def _shares(model: nn.Module, rank: int) -> Iterator[tuple[str, Tensor]]:
    seen: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            weight = _unpacked(module) if key == "weight" and _packed(module) else parameter
            if id(parameter) in seen and torch.equal(weight, parameter):
                continue  # shared. A copy that differs from its original is counted, and the sums then differ
            seen[id(parameter)] = parameter
            if rank:
                weight = _own(module, key, weight, rank)
            if weight is not None:
                yield f"{path}.{key}", weight


def _packed(module: nn.Module) -> bool:
    """Whether the module multiplies with a packed copy of its weight, made for the CPU at loading.

    Then only the copy counts: the weight itself is empty or unused.
    """
    packs = isinstance(module, LinearBase | ParallelLMHead)
    return packs and getattr(module, "cpu_linear", torch.nn.functional.linear) is not torch.nn.functional.linear


def _unpacked(module: nn.Module) -> Tensor:
    """Return the weight [out, in] that the module multiplies with: the images of unit vectors under its own kernel.

    Exact, because every sum has one non-zero term.
    """
    layer: Any = module  # vLLM sets these attributes without declaring them
    if isinstance(module, ParallelLMHead):
        width, dtype = layer.embedding_dim, layer.weight.dtype
    else:
        width, dtype = layer.input_size_per_partition, layer.params_dtype
    columns = []
    for start in range(0, width, ROWS):
        unit = torch.eye(width, dtype=dtype)[start : start + ROWS]
        columns.append(layer.quant_method.apply(module, unit, None))  # [rows, out]
    return torch.cat(columns).T


def _own(module: nn.Module, key: str, weight: Tensor, rank: int) -> Tensor | None:
    """Return the part of a weight that no worker before `rank` holds. None: nothing."""
    layer: Any = module
    if isinstance(module, QKVParallelLinear) and rank % layer.num_kv_head_replicas:
        return weight[: layer.num_heads * layer.head_size]  # keys and values are those of the worker before
    if isinstance(module, ReplicatedLinear) or (isinstance(module, RowParallelLinear) and key == "bias"):
        return None
    return weight if isinstance(module, LinearBase | VocabParallelEmbedding) else None
