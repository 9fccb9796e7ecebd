"""Lists token by token from a Hugging Face policy in this process: lists that wait together share a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from convrec_r1.policy import Policy
from convrec_r1.rollout.constraint import Constraint
from convrec_r1.rollout.decoding import _Batch, _next, prefill
from convrec_r1.rollout.lines import LineCounters
from convrec_r1.rollout.sampler import SeededSampler
from convrec_r1.serve.stepper import Job, Written


class HFStepper:
    """Decodes one batch at a time. A list that is added meanwhile waits for the next batch."""

    def __init__(self, policy: Policy, constraint: Constraint | None, *, capacity: int = 64) -> None:
        """capacity: lists in a batch."""
        self.policy, self.constraint, self.capacity = policy, constraint, capacity
        self._waiting: dict[int, Job] = {}
        self._batch: _Decoding | None = None

    def add(self, key: int, job: Job) -> None:
        self._waiting[key] = job

    def step(self) -> list[Written]:
        with self.policy.inference():
            if self._batch is None:
                if not self._waiting:
                    return []
                self._batch = _Decoding(self.policy, self.constraint, self._take())
            written = self._batch.step()
            if not self._batch.alive:
                self._batch = None
            return written

    def abort(self, key: int) -> None:
        self._waiting.pop(key, None)
        if self._batch is not None:
            self._batch.alive.discard(key)
            if not self._batch.alive:
                self._batch = None

    def reset(self) -> None:
        self._waiting.clear()
        self._batch = None

    def close(self) -> None:
        self.reset()

    def _take(self) -> dict[int, Job]:
        """Remove the jobs of the next batch from those that wait: the first one, and others with the same sampling."""
        first = next(iter(self._waiting.values()))
        chosen = [key for key, job in self._waiting.items() if job.sampling == first.sampling][: self.capacity]
        return {key: self._waiting.pop(key) for key in chosen}


class _Decoding:
    """One batch. `alive` holds the keys of the lists that go on; a key that is removed from it is not decoded further."""

    def __init__(self, policy: Policy, constraint: Constraint | None, jobs: dict[int, Job]) -> None:
        self.policy = policy
        self.keys = list(jobs)
        self.alive = set(jobs)
        ordered = list(jobs.values())
        self.sampling = ordered[0].sampling
        prompts = [job.prompt for job in ordered]
        device = policy.device
        self.batch = _Batch(range(len(prompts)), [len(p) for p in prompts], self.sampling.max_tokens, device)
        self.sampler = SeededSampler([job.seed for job in ordered], self.sampling, device)
        self.lines = None if self.sampling.max_lines is None else LineCounters(policy, len(prompts))
        self.states = [constraint.state(job.opening) if constraint and job.opening else None for job in ordered]
        self.at = 0
        self.logits = prefill(policy, self.batch.cache, prompts)

    def step(self) -> list[Written]:
        token, logprob = self.sampler.draw(self._held(self.logits), self.at)
        over = self.policy.eos[token]
        if self.lines is not None:
            over = over | (self.lines.add(token) >= self.sampling.max_lines)
        self.at += 1
        written = []
        for row, (key, t, p, end) in enumerate(
            zip(self.keys, token.tolist(), logprob.tolist(), over.tolist(), strict=True)
        ):
            if key not in self.alive:
                continue
            if (state := self.states[row]) is not None:
                state.advance(t)
            finished = "stop" if end else "length" if self.at == self.sampling.max_tokens else None
            written.append(Written(key, [t], [p], finished))
            if finished:
                self.alive.discard(key)
        if self.alive:
            self._forward(token)
        return written

    def _held(self, logits: Tensor) -> Tensor:
        if not any(self.states):
            return logits
        logits = logits.float()
        mask = torch.full_like(logits, -torch.inf)
        for row, state in enumerate(self.states):
            if state is None or self.keys[row] not in self.alive:
                mask[row] = 0
            else:
                mask[row, torch.from_numpy(state.allowed().tokens()).long()] = 0
        return logits + mask

    def _forward(self, token: Tensor) -> None:
        alive = torch.tensor([key in self.alive for key in self.keys], device=token.device)
        if len(self.alive) <= 7 / 8 * len(self.keys):
            self.batch.alive = alive
            kept = self.batch.compact()
            token = token[kept]
            self.sampler.keep(kept)
            if self.lines is not None:
                self.lines.keep(kept)
            self.states = [self.states[row] for row in kept.tolist()]
            self.keys = [self.keys[row] for row in kept.tolist()]
        self.logits = _next(self.policy, self.batch.cache, token, self.batch.positions)
        self.batch.positions = self.batch.positions + 1
