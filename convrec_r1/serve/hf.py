"""Lists token by token from a Hugging Face policy in this process: lists that wait together share a batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

from convrec_r1.policy.attention import Unsupported
from convrec_r1.policy.policy import Policy
from convrec_r1.rollout.constraint import Constraint, HeldLists
from convrec_r1.rollout.decoding import Decoding, Step, bytes_of_a_token
from convrec_r1.rollout.hf import HFEngine
from convrec_r1.rollout.sampler import SeededSampler
from convrec_r1.serve.stepper import Job, Written

_log = logging.getLogger(__name__)
CACHE_BYTES = 4 << 30
"""Keys and values of a batch, at most, as far as one list allows."""


class HFStepper:
    """Writes one batch at a time. A list that is added meanwhile waits for the next one.

    A model whose attention takes no layouts is sampled by transformers' `generate`: a step writes whole lists then.
    """

    def __init__(self, policy: Policy, constraint: Constraint | None, *, capacity: int = 64) -> None:
        """capacity: lists in a batch, at most."""
        self.policy, self.constraint, self.capacity = policy, constraint, capacity
        self._whole = HFEngine(policy, batch_size=capacity, constraint=constraint)
        self._waiting: dict[int, Job] = {}
        self._batch: _Batch | None = None
        try:
            with policy.inference():
                self._token = bytes_of_a_token(policy)
        except (Unsupported, TypeError, ValueError, AttributeError):
            self._token = None
        if self._token is None:
            _log.warning(
                "%s has attention of its own kind: lists appear as a whole, not item by item.",
                type(policy.causal_lm).__name__,
            )

    def add(self, key: int, job: Job) -> None:
        self._waiting[key] = job

    def step(self) -> list[Written]:
        if self._batch is None:
            if not self._waiting:
                return []
            jobs = self._take()
            if self._token is None:
                return self._write_whole(jobs)
            self._batch = _Batch(self.policy, self.constraint, jobs)
        try:
            with self.policy.inference():
                written = self._batch.step()
        except Unsupported:  # before the first token: prompt and list may be longer than a sliding window
            jobs, self._batch = self._batch.left(), None
            return self._write_whole(jobs)
        if not self._batch.keys:
            self._batch = None
        return written

    def abort(self, key: int) -> None:
        self._waiting.pop(key, None)
        if self._batch is not None:
            self._batch.abort(key)
            if not self._batch.keys:
                self._batch = None

    def reset(self) -> None:
        self._waiting.clear()
        self._batch = None

    def close(self) -> None:
        self.reset()

    def _take(self) -> dict[int, Job]:
        """Remove the jobs of the next batch from those that wait: the first, and others with the same sampling.

        Their limits of tokens may differ: where the model's window sets them, they depend on the prompts.
        """
        first = next(iter(self._waiting.values())).sampling
        chosen: dict[int, Job] = {}
        prompt = tokens = 0
        for key, job in self._waiting.items():
            if replace(job.sampling, max_tokens=first.max_tokens) != first:
                continue
            prompt, tokens = max(prompt, len(job.prompt)), max(tokens, job.sampling.max_tokens)
            cache = (len(chosen) + 1) * (prompt + tokens) * (self._token or 0)
            if len(chosen) == self.capacity or (chosen and cache > CACHE_BYTES):
                break
            chosen[key] = job
        for key in chosen:
            del self._waiting[key]
        return chosen

    def _write_whole(self, jobs: dict[int, Job]) -> list[Written]:
        written = []
        for sampling in dict.fromkeys(job.sampling for job in jobs.values()):
            keys = [key for key, job in jobs.items() if job.sampling == sampling]
            ordered = [jobs[key] for key in keys]
            openings = [job.opening for job in ordered if job.opening is not None]
            groups = self._whole.generate(
                [job.prompt for job in ordered], [job.seed for job in ordered], sampling, None, openings or None
            )
            written += [
                Written(key, done.ids.tolist(), done.logprobs.tolist(), done.finish_reason)
                for key, (done,) in zip(keys, groups, strict=True)
            ]
        return written


class _Batch:
    """Lists that are decoded together. `keys` holds those that go on, by their row."""

    def __init__(self, policy: Policy, constraint: Constraint | None, jobs: dict[int, Job]) -> None:
        self.keys = dict(enumerate(jobs))
        self._jobs, ordered = jobs, list(jobs.values())
        self._limits = [job.sampling.max_tokens for job in ordered]
        sampling = replace(ordered[0].sampling, max_tokens=max(self._limits))
        openings = [job.opening for job in ordered if job.opening is not None]
        self._decoding = Decoding(
            policy,
            [job.prompt for job in ordered],
            range(len(ordered)),
            SeededSampler([job.seed for job in ordered], sampling, policy.device),
            sampling.max_tokens,
            sampling.max_lines,
            held=HeldLists(constraint, openings, policy.device) if constraint and openings else None,
        )
        self._steps: Iterator[Step] = iter(self._decoding)
        self._made = 0

    def step(self) -> list[Written]:
        step = next(self._steps)
        self._made += 1
        written = []
        columns = (step.rows, step.tokens, step.logprobs, step.ended)
        for row, token, logprob, ended in zip(*(column.tolist() for column in columns), strict=True):
            if row not in self.keys:
                continue
            finished = "stop" if ended else "length" if self._made == self._limits[row] else None
            written.append(Written(self.keys[row], [token], [logprob], finished))
            if finished:
                del self.keys[row]
            if finished == "length":
                self._decoding.end([row])
        return written

    def abort(self, key: int) -> None:
        """End a list, if it goes on."""
        for row in [row for row, other in self.keys.items() if other == key]:
            del self.keys[row]
            self._decoding.end([row])

    def left(self) -> dict[int, Job]:
        """Return the jobs of the lists that go on."""
        return {key: self._jobs[key] for key in self.keys.values()}
