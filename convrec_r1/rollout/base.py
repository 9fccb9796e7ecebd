"""What every rollout engine takes and gives."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from convrec_r1.policy import Policy

SEEDS_APART = 1 << 16
"""Distance between the seeds of two prompts: sample g of a prompt uses seed + g, so groups up to this size never meet."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `temperature` 0: greedy, one completion a prompt."""

    n: int = 1
    """Completions a prompt (the group size G)."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    max_lines: int | None = None
    """Stop as soon as this many lines are closed, without EOS; None: at EOS or `max_tokens` only."""


@dataclass(frozen=True)
class Completion:
    """One sampled list, token ids as they were sampled: nothing downstream tokenizes its text again."""

    ids: np.ndarray  # int64 [T], EOS included where it was reached
    logprobs: np.ndarray  # float32 [T], of the distribution sampled from (after temperature, top_p, top_k)
    finish_reason: Literal["stop", "length"]
    """stop: at EOS or at `max_lines`; length: at `max_tokens`."""


class RolloutEngine(Protocol):
    """Samples from the weights that the last `sync` gave it: the trainer's own, or a copy."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in order: P lists of n.

        Sample g of prompt p is drawn with seed `seeds[p] + g`, whatever shares its batch. `on_progress` is told of
        completions as they are finished.
        """
        ...

    def sync(self, policy: Policy) -> None:
        """Sample from `policy`'s weights as they are now, from here on. Called by every process of a run.

        `policy` may be another one than before, of the same architecture. Raises SyncError where the engine's weights
        turn out not to be the policy's.
        """
        ...

    def close(self) -> None: ...


class SyncError(RuntimeError):
    """The engine's weights are not the trainer's: what it samples must not be trained on."""


def prompt_seed(run_seed: int, step: int, prompt: int) -> int:
    """The seed of a prompt's group, in [0, 2**62): a hash, so that neighbouring runs and steps share nothing.

    prompt: the position in the step's global batch, so that it does not hang on batching or on processes.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 2) // SEEDS_APART * SEEDS_APART
