"""Bundles: the groups that a worker samples at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.constraint import Opening


@dataclass(frozen=True)
class Request:
    """What a worker samples, apart from the weights."""

    prompts: list[list[int]]  # p prompts
    seeds: list[int]  # [p]
    sampling: Sampling
    autocast: str | None = None
    """dtype in which the trainer multiplies matrices, as in "bfloat16", for engines with its arithmetic. None: that of the
    weights."""
    openings: list[Opening] | None = None
    """[p], of the lists of each prompt. None: they are held to nothing."""


@dataclass(frozen=True)
class Packed:
    """Groups as four arrays, which travel faster than thousands of small ones. B = p * n completions of T tokens in all."""

    ids: np.ndarray  # int64 [T]
    logprobs: np.ndarray  # float32 [T]
    lengths: np.ndarray  # int64 [B]
    stopped: np.ndarray  # bool [B]


def compose(lengths: Sequence[int], group: int, capacity: int, workers: int) -> list[list[int]]:
    """Return the prompts of each bundle, as ascending places in `lengths`. The bundle with the longest prompts comes first.

    Prompts of similar length share a bundle, because an engine pads. A bundle is at most what an engine samples at a time, and
    at most a worker's share. It depends on the arguments only: a group's neighbours, with which its log-probs are rounded, are
    the same whichever workers live. With one worker the bundles are the batches of an HFEngine in the trainer's process.

    Args:
        lengths: tokens of each prompt.
        group: completions of a prompt.
        capacity: completions that an engine samples at a time.
        workers: as configured.
    """
    if not lengths:
        return []
    size = max(1, min(capacity // group, -(-len(lengths) // workers)))
    order = sorted(range(len(lengths)), key=lambda p: (lengths[p], p))
    return [sorted(order[start : start + size]) for start in range(0, len(order), size)][::-1]


def pack(groups: Sequence[Sequence[Completion]]) -> Packed:
    """Return groups as arrays."""
    every = [completion for group in groups for completion in group]
    return Packed(
        np.concatenate([c.ids for c in every]) if every else np.empty(0, np.int64),
        np.concatenate([c.logprobs for c in every]) if every else np.empty(0, np.float32),
        np.array([len(c.ids) for c in every], np.int64),
        np.array([c.finish_reason == "stop" for c in every], bool),
    )


def unpack(packed: Packed, n: int) -> list[list[Completion]]:
    """Return groups of n completions. Their arrays can be written to, in contrast to those that Ray returns."""
    ids, logprobs = packed.ids.copy(), packed.logprobs.copy()
    ends = packed.lengths.cumsum()
    every = [
        Completion(ids[start:end], logprobs[start:end], "stop" if stopped else "length")
        for start, end, stopped in zip(ends - packed.lengths, ends, packed.stopped.tolist(), strict=True)
    ]
    return [every[at : at + n] for at in range(0, len(every), n)]
