"""How fast the device is at what a run does, measured in a few seconds."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from convrec_r1.doctor.estimate import Size, Speed

_SECONDS = 0.3
"""For each measurement, after one pass to warm up."""
_LAYERS, _TOKENS = 4, 16


def measure(device: torch.device, size: Size, *, rows: int, dtype: torch.dtype) -> Speed:
    """rows: tokens that the layers see at a time."""
    rows, inner = min(max(rows, 1), 4096), min(size.intermediate, 16_384)
    x = torch.randn(rows, size.hidden, device=device, dtype=dtype)
    w = torch.randn(size.hidden, inner, device=device, dtype=dtype)
    flops = 2 * rows * size.hidden * inner / _time(lambda: x @ w, device)
    count = (1 << 28) if device.type == "cuda" else (1 << 24)  # far more than a cache holds
    a = torch.zeros(count, device=device)
    b = torch.empty_like(a)
    bandwidth = 2 * a.nbytes / _time(lambda: b.copy_(a), device)
    small: Any = _small(device)  # transformers' declarations of generate() and to() do not fit its own models
    ids = torch.arange(8, device=device).reshape(2, 4)
    options = GenerationConfig(max_new_tokens=_TOKENS, min_new_tokens=_TOKENS, pad_token_id=0, eos_token_id=1)
    token = _time(lambda: small.generate(ids, generation_config=options), device) / _TOKENS / _LAYERS
    layer = _time(lambda: small(input_ids=ids).logits.sum().backward(), device) / _LAYERS
    return Speed(flops, bandwidth, token, layer)


def _small(device: torch.device) -> nn.Module:
    """Layers so small that what they take is the calls themselves."""
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=_LAYERS, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        small: Any = Qwen2ForCausalLM(config)
        return small.to(device).eval()


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes: the median of what fits into the time there is, three times at least."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    took: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(took) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2]
