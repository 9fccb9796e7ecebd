"""The interface of a rollout engine, and how the engine that a config names is built."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from convrec_r1.base.plugins import build
from convrec_r1.rollout.config import RolloutConfig, choose_engine

if TYPE_CHECKING:  # they import transformers, which takes seconds
    from convrec_r1.policy import Policy
    from convrec_r1.rollout.constraint import Constraint, Opening

SEEDS_APART = 1 << 16
"""Distance between the seeds of two prompts. Sample g of a prompt uses seed + g, so groups up to this size never overlap."""


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled. `temperature` 0: greedy, one completion per prompt."""

    n: int = 1
    """Completions per prompt (the group size G)."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    max_tokens: int = 1024
    max_lines: int | None = None
    """Stop as soon as this many lines are closed, without EOS. None: stop at EOS or at `max_tokens` only."""


@dataclass(frozen=True)
class Completion:
    """One sampled list as token ids. Nothing downstream tokenizes its text again."""

    ids: np.ndarray  # int64 [T], with EOS where it was sampled
    logprobs: np.ndarray  # float32 [T], of the distribution sampled from (after temperature, top_p, top_k)
    finish_reason: Literal["stop", "length"]
    """stop: at EOS or at `max_lines`. length: at `max_tokens`."""


class Submitted(Protocol):
    """Groups that are being sampled. A `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """Whether `result` returns at once."""
        ...

    def result(self) -> list[list[Completion]]:
        """Wait for the groups, as from `RolloutEngine.generate`. Raises what sampling raised."""
        ...

    def cancel(self) -> object:
        """Do not sample what is left: nobody will ask for the result."""
        ...


@runtime_checkable
class RolloutEngine(Protocol):
    """What an engine must have: an object with these three methods, whose class `rollout._target_` names.

    The class is called with keyword arguments: its options (`rollout.options`), and, where it has parameters of these names,
        policy: a `Policy` of the architecture that will be sampled. Its weights do not count before `sync`.
        max_length: upper limit of prompt and completion together, in tokens.
        constraint: a `rollout.constraint.Constraint`, or None if no lists are held to the catalog.

    Optional, besides:
        constrains: class attribute. True for an engine that can hold lists to the catalog: `generate` (and `submit`) take
            `openings` then. Default False. Without a constraint they are called without it.
        own_weights: class attribute. False for an engine that samples from the policy object itself, with the trainer's
            arithmetic: its log-probs need no correction. Default True.
        submit(prompts, seeds, sampling, openings=None) -> Submitted: start to sample, from the weights of the last `sync`
            before the call, whatever is synced meanwhile. Needed for rollout.overlap without rollout workers.
        load(weights): sample from these weights from now on. An iterable of (name, tensor), as in the model's checkpoint;
            LoRA is merged. Tensors must not be changed. Needed for rollout.workers: each worker has an engine, whose policy
            is a `policy.skeleton`, and calls `load` in place of `sync`.
        weight_format() -> (dtype | None, tied): how `load` wants them: dtype, None for that of the policy; and whether a head
            that shares its weights with the embeddings is left out. Default (None, True). May start the engine.
        weight_sums() -> sums of the bits of its weights (`checksums.WeightSums.by_layer`), which the worker compares with
            those of the trainer's.

    Every process of a run has an engine and makes the same calls in the same order, each with prompts of its own.
    """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
        openings: Sequence[Opening] | None = None,
    ) -> list[list[Completion]]:
        """Sample `sampling.n` completions for each prompt, from the weights of the last `sync`.

        Args:
            prompts: P prompts as token ids, of any lengths. P may be 0 while other processes have prompts.
            seeds: [P]. Sample g of prompt p is drawn with seed `seeds[p] + g`: it does not depend on the rest of the batch.
            sampling: the same for all prompts.
            on_progress: called with numbers of completions as they finish; P * n in total.
            openings: [P], what the lists of each prompt may hold. None: they are held to nothing. Log-probs are of the
                distribution over the tokens that the constraint allows. Needs `constrains`.
        Returns:
            P lists of n completions, in the order of `prompts` and of g.
        Raises:
            UserError: sampling failed for a reason that the user can fix.
        """
        ...

    def sync(self, policy: Policy) -> None:
        """Sample from `policy`'s present weights from now on.

        Called before the first rollout, after every RL step, and before evaluations.

        `policy` may be another object than before, of the same architecture.

        Raises:
            SyncError: the engine's weights are not the policy's.
            UserError: the engine cannot start.
        """
        ...

    def close(self) -> None:
        """Free memory and end processes. A later `sync` starts the engine again. May be called twice."""
        ...


def make_engine(
    cfg: RolloutConfig, policy: Policy, *, max_length: int, constraint: Constraint | None = None
) -> RolloutEngine:
    """Build the engine that `cfg` names, in this process. It samples nothing before its first `sync`.

    Args:
        policy: of the architecture that will be sampled.
        max_length: upper limit of prompt and completion together, in tokens.
        constraint: that `openings` refer to. None: no lists are held to the catalog.
    Raises:
        UserError: the class cannot be imported or built, or is no `RolloutEngine`.
    """
    cfg, _ = choose_engine(cfg)
    shared = {f.name for f in fields(RolloutConfig)}
    own = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in shared}
    node = {"_target_": cfg._target_, **own, **cfg.options}
    return build(node, "rollout", RolloutEngine, policy=policy, max_length=max_length, constraint=constraint)


def prompt_seed(run_seed: int, step: int, prompt: int) -> int:
    """Return the seed of a prompt's group, in [0, 2**62): a hash, so that neighbouring runs and steps share no numbers.

    prompt: position in the step's global batch. The seed does not depend on batching or on the number of processes.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 2) // SEEDS_APART * SEEDS_APART
