"""Arguments of vLLM's engine."""

# vLLM is optional.
# pyright: reportMissingImports=none

import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from convrec_r1.base.errors import UserError
from convrec_r1.policy import Policy
from convrec_r1.policy.weights import tied_head
from convrec_r1.rollout.base import SEEDS_APART, Sampling
from convrec_r1.rollout.config import VLLMConfig
from convrec_r1.rollout.constraint import Constraint, Opening

LINE_TABLES = "line_tokens.pt"
"""File in an engine's model folder: which token ids contain a newline, and which are white space only."""
CONSTRAINT = "constraint.pickle"
"""File in an engine's model folder: the run's catalog constraint, if it has one."""
OPENING = "opening"
"""In `extra_args` of a request whose list is held to the catalog: `Opening.packed`."""
NEEDED = {
    "worker_extension_cls": "convrec_r1.rollout.vllm.worker.WeightSync",
    "logits_processors": [  # in this order: the EOS after the last line is allowed whatever the catalog says
        "convrec_r1.rollout.vllm.catalog:HoldToCatalog",
        "convrec_r1.rollout.vllm.stop:StopAfterLines",
    ],
    "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
    "generation_config": "vllm",  # not the model's own defaults (top_k, penalties), which apply without a warning
}
"""Arguments of every engine that samples for a run, by the names of `vllm.EngineArgs`."""
UNTIED = {"tie_word_embeddings": False}
GIB = 1 << 30
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes that vLLM 0.32 has CPU kernels for."""

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# Where Triton runs, vLLM 0.32 takes its second model runner unless told otherwise, which refuses processors like ours.
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # what people train stays private
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer sets the threads
warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\..*")

_constraints: WeakValueDictionary[Path, Constraint] = WeakValueDictionary()
"""Of the engines whose folder this process has made. What they remember of it serves trainer and engine."""


def runs_on_cpu() -> bool:
    """Whether vLLM computes on the CPU in this process. Its build decides, not the trainer's device."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


@dataclass(frozen=True)
class Setup:
    """An engine's arguments, by the names of `vllm.EngineArgs`, and how it takes weights."""

    arguments: dict[str, Any]
    dtype: torch.dtype
    tied: bool
    """Whether the engine's head and embeddings share their weights."""


def setup(
    options: VLLMConfig,
    policy: Policy,
    folder: Path,
    *,
    max_length: int,
    on_cpu: bool,
    constraint: Constraint | None = None,
) -> Setup:
    """Write what an engine for `policy` reads to `folder`, and return the engine's arguments.

    That is the policy's config and tokenizer, `LINE_TABLES`, and `CONSTRAINT`.

    The engine starts with random weights; the first `sync` brings the policy's.

    Args:
        folder: the engine's model folder.
        max_length: upper limit of prompt and completion together, in tokens.
        on_cpu: whether the engine will compute on a CPU.
    Raises:
        UserError: vLLM has no CPU kernel for the model's attention heads.
    """
    config = policy.causal_lm.config
    config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    tables = {name: getattr(policy, name).cpu() for name in ("newline", "blank", "opens", "thought")}
    torch.save(tables | {"eos": policy.eos_ids[0]}, folder / LINE_TABLES)
    if constraint is not None:
        (folder / CONSTRAINT).write_bytes(pickle.dumps(constraint))
        _constraints[folder] = constraint
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if on_cpu and head_size not in CPU_HEAD_SIZES:
        raise UserError(
            f"vLLM's CPU kernels take attention heads of {', '.join(map(str, CPU_HEAD_SIZES))} dimensions; this model's have "
            f"{head_size}. Use rollout=hf, or, for a model made here, another model.hidden_size or model.heads."
        )
    dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    # On CPUs vLLM packs matrices when it loads them. It never packs a head that shares the embeddings' weights again: such a
    # head would keep its first weights forever. A head with weights of its own is loaded like any other matrix.
    untie = tied_head(policy) and on_cpu
    arguments: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": dtype,
        "max_model_len": fitting_length(policy, max_length),
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": max(options.max_num_batched_tokens, max_length),
        "enable_prefix_caching": True,
        # On CPUs vLLM 0.32 cannot seed a prompt that it prefills in pieces. Every prompt fits into one pass.
        "enable_chunked_prefill": not on_cpu,
        "enforce_eager": options.enforce_eager if options.enforce_eager is not None else on_cpu,
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": options.memory_fraction,
        **NEEDED,
    }
    if constraint is not None:
        arguments["async_scheduling"] = False  # which schedules the next token before the last one is known
    if untie:
        arguments["hf_overrides"] = UNTIED
    if options.kv_cache_gib:
        arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gib * GIB)
    elif on_cpu:
        arguments["kv_cache_memory_bytes"] = _cache_of_all(options, config, head_size, max_length, dtype)
    return Setup(arguments, getattr(torch, dtype), tied_head(policy) and not untie)


def read_constraint(folder: Path) -> Constraint | None:
    """Return the constraint of an engine with this model folder: the same object in the process that made the folder."""
    if folder in _constraints:
        return _constraints[folder]
    file = folder / CONSTRAINT
    return pickle.loads(file.read_bytes()) if file.exists() else None


def fitting_length(policy: Policy, max_length: int) -> int:
    """Return `max_length`, or the model's own limit if that is lower."""
    return min(max_length, getattr(policy.causal_lm.config, "max_position_embeddings", None) or max_length)


def sampling_arguments(
    sampling: Sampling, seed: int, eos_ids: list[int], opening: Opening | None = None
) -> dict[str, Any]:
    """Return `sampling` for one prompt, by the names of `vllm.SamplingParams`. opening: what its lists may hold."""
    arguments: dict[str, Any] = {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "stop_token_ids": list(eos_ids),
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }
    if sampling.temperature > 0:
        arguments["seed"] = engine_seed(seed, sampling.n)
    extra: dict[str, Any] = {} if opening is None else {OPENING: opening.packed()}
    if sampling.max_lines is not None:
        extra["max_lines"] = sampling.max_lines
    if extra:
        arguments["extra_args"] = extra
    return arguments


def engine_seed(seed: int, n: int) -> int:
    """Return a group's seed in 32 bits, at least n away from every other group's: vLLM draws sample g with seed + g.

    CPU generators read the low 32 bits only, and most of these are zero in a prompt's seed.
    """
    apart = 1 << max(0, n - 1).bit_length()
    return (seed // SEEDS_APART) % ((1 << 32) // apart) * apart


def _cache_of_all(options: VLLMConfig, config: Any, head_size: int, max_length: int, dtype: str) -> int:
    """Bytes of keys and values of `max_num_seqs` sequences of full length, between 64 MiB and 4 GiB."""
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * kv_heads * head_size * getattr(torch, dtype).itemsize
    blocks = -(-max_length // 128) * 128
    return min(max(per_token * blocks * options.max_num_seqs, GIB // 16), 4 * GIB)
