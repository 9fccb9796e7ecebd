"""Memory in bytes: what is free, what this process holds and takes, and what tensors of a run will take."""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convrec_r1.base.memory import release
from convrec_r1.modules.config import Optimizer
from convrec_r1.policy import Policy

_MEMINFO, _STATM = Path("/proc/meminfo"), Path("/proc/self/statm")
_BLOCK, _LEAST_8BIT = 256, 4096
"""Elements that share a scale in the 8-bit AdamW of bitsandbytes, and elements from which on a tensor's moments have 8 bits."""


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free: of the GPU, or of the machine within the container's limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no limit, or no control group
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def held_memory(device: torch.device) -> int:
    """Return the bytes that this process holds on the GPU, or of RAM. 0 on systems without /proc."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = _STATM.read_text().split()[1] if _STATM.exists() else 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yield a list. At the end of the block it gets the peak bytes of the block, beyond those held before it."""
    found: list[int] = []
    if device.type == "cpu":  # what was freed and is kept for reuse would hide what the block takes
        release()
    before = held_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(max(0, torch.cuda.max_memory_allocated(device) - before))
        return
    highest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], held_memory(device))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found.append(max(highest[0], held_memory(device)) - before)


def optimizer_bytes(parameters: Iterable[Tensor], choice: Optimizer) -> int:
    """Return the bytes of the optimizer's moments of some parameters. They may be meta tensors."""
    if choice is Optimizer.adamw:
        return sum(2 * p.numel() * p.element_size() for p in parameters)
    sizes = [p.numel() for p in parameters]
    return sum(2 * (n + 4 * math.ceil(n / _BLOCK)) if n >= _LEAST_8BIT else 2 * 4 * n for n in sizes)


def reference_bytes(policy: Policy, dtype: torch.dtype | None) -> int:
    """Return the bytes of a frozen copy of a policy's weights (`Policy.reference`). 0 under LoRA, which needs no copy.

    dtype: of the copy. None: as the policy's.
    """
    if policy.has_lora:
        return 0
    return sum(p.numel() * (dtype or p.dtype).itemsize for p in policy.parameters())


def keeps_reference_in_file(device: torch.device) -> bool:
    """Return whether a run keeps its reference in a file of its folder, so that it takes disk and no memory."""
    return device.type == "cpu" and sys.platform == "linux"


@torch.no_grad()
def cache_bytes(policy: Policy) -> int:
    """Return the bytes of keys and values for each token of a sequence."""
    with policy.inference():
        ids = torch.zeros(1, 4, dtype=torch.long, device=policy.device)
        lm: Any = policy.causal_lm
        cache = lm(input_ids=ids, use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // 4


def size(number: float) -> str:
    """Return bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
