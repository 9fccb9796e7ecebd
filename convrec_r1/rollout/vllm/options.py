"""How an engine is set up: the same arguments for one in process and for a server."""

# vLLM is optional.
# pyright: reportMissingImports=none

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convrec_r1.base.errors import UserError
from convrec_r1.policy import Policy
from convrec_r1.rollout.base import SEEDS_APART, Sampling
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.rollout.weights import tied_head

LINE_TABLES = "line_tokens.pt"
"""In an engine's model folder: which token ids have a newline, and which are white space only."""
WORKER = "convrec_r1.rollout.vllm.worker.WeightSync"
STOP = "convrec_r1.rollout.vllm.stop:StopAfterLines"
GIB = 1 << 30
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM 0.32 has kernels for. Written down here, as a trainer beside a server need not import vLLM."""

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # what people train is theirs
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # threads are the trainer's business
warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\..*")


def runs_on_cpu() -> bool:
    """Whether vLLM computes on the CPU here. vLLM decides by what was built, not by what the trainer uses."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


@dataclass(frozen=True)
class Setup:
    """An engine's arguments, by the names of `vllm.EngineArgs`, and what the trainer must know to feed it."""

    arguments: dict[str, Any]
    dtype: torch.dtype
    tied: bool
    """Whether the engine shares the head's weights with the embeddings."""

    def flags(self) -> list[str]:
        """The same arguments for a server's command line."""
        flags = []
        for name, value in self.arguments.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                flags.append(flag if value else f"--no-{flag[2:]}")
            elif isinstance(value, list):
                flags += [flag, *map(str, value)]
            else:
                flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
        return flags


def setup(cfg: RolloutConfig, policy: Policy, folder: Path, *, max_length: int, on_cpu: bool) -> Setup:
    """Arguments for `policy`'s architecture, written to `folder` with its tokenizer, and without its weights.

    max_length: of prompt and completion together, in tokens. The engine starts with weights of no meaning; whatever it
    samples comes from weights that `sync` brought. Raises UserError for an architecture that its kernels do not take.
    """
    write_model(policy, folder)
    config = policy.causal_lm.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if on_cpu:
        _check_head_size(head_size)
    dtype = cfg.dtype or ("float32" if on_cpu else "bfloat16")
    # On CPUs vLLM packs matrices when it loads them and, where the head shares the embeddings' weights, never packs the
    # head again: it would go on with the first weights for ever. With weights of its own it is loaded like any other.
    tied = tied_head(policy) and not on_cpu
    arguments: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": dtype,
        "max_model_len": fitting_length(policy, max_length),
        "max_num_seqs": cfg.max_num_seqs,
        "max_num_batched_tokens": max(cfg.max_num_batched_tokens, max_length),
        "enable_prefix_caching": True,
        # On CPUs vLLM 0.32 cannot seed a prompt that it prefills in pieces. Each fits into one pass as it is.
        "enable_chunked_prefill": not on_cpu,
        "enforce_eager": cfg.enforce_eager if cfg.enforce_eager is not None else on_cpu,
        "tensor_parallel_size": cfg.tensor_parallel_size,
        "gpu_memory_utilization": cfg.memory_fraction,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "generation_config": "vllm",  # the model's own defaults (top_k, penalties) would bend it in silence
        "worker_extension_cls": WORKER,
        "logits_processors": [STOP],
    }
    if tied_head(policy) and not tied:
        arguments["hf_overrides"] = {"tie_word_embeddings": False}
    cache = cfg.kv_cache_gib * GIB if cfg.kv_cache_gib else _cache_of_all(cfg, config, head_size, max_length, dtype)
    if cfg.kv_cache_gib or on_cpu:
        arguments["kv_cache_memory_bytes"] = int(cache)
    return Setup(arguments, getattr(torch, dtype), tied)


def _check_head_size(size: int) -> None:
    if size not in CPU_HEAD_SIZES:
        raise UserError(
            f"vLLM's CPU kernels take attention heads of {', '.join(map(str, CPU_HEAD_SIZES))} dimensions; this model's have "
            f"{size}. Use rollout=hf, or, for a model made here, another model.hidden_size or model.heads."
        )


def fitting_length(policy: Policy, max_length: int) -> int:
    """`max_length`, or what the model takes if that is less."""
    return min(max_length, getattr(policy.causal_lm.config, "max_position_embeddings", None) or max_length)


def write_model(policy: Policy, folder: Path) -> None:
    """What an engine needs of the model beside its weights: config, tokenizer, and which tokens end lines."""
    policy.causal_lm.config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    torch.save(
        {"newline": policy.newline.cpu(), "blank": policy.blank.cpu(), "eos": policy.eos_ids[0]}, folder / LINE_TABLES
    )


def sampling_arguments(sampling: Sampling, seed: int, eos_ids: list[int]) -> dict[str, Any]:
    """`sampling` for one prompt, by the names of `vllm.SamplingParams`."""
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
    if sampling.max_lines is not None:
        arguments["extra_args"] = {"max_lines": sampling.max_lines}
    return arguments


def engine_seed(seed: int, n: int) -> int:
    """The seed of a group in 32 bits, at least n from that of another: vLLM draws sample g with seed + g.

    Generators of CPUs read the low 32 bits only, and of a prompt's seed most of these are zero.
    """
    apart = 1 << max(0, n - 1).bit_length()
    return (seed // SEEDS_APART) % ((1 << 32) // apart) * apart


def _cache_of_all(cfg: RolloutConfig, config: Any, head_size: int, max_length: int, dtype: str) -> int:
    """Bytes of keys and values for as many of the longest sequences as run at a time, between 64 MiB and 4 GiB."""
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * kv_heads * head_size * getattr(torch, dtype).itemsize
    blocks = -(-max_length // 128) * 128
    return min(max(a_token * blocks * cfg.max_num_seqs, GIB // 16), 4 * GIB)
