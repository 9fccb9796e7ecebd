"""rollout.workers: rollouts from Ray actors, each with an engine of its own."""

# Ray is optional.
# pyright: reportMissingImports=none

import os
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from convrec_r1.base.processes import Channel
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import Connection, connect
from convrec_r1.policy import Policy
from convrec_r1.policy.skeleton import skeleton
from convrec_r1.policy.weights import stream_weights
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.checksums import SyncCheck
from convrec_r1.rollout.config import NIXL, RolloutConfig
from convrec_r1.rollout.constraint import Constraint, Opening
from convrec_r1.rollout.workers.bundles import Request, compose
from convrec_r1.rollout.workers.pool import Bundle, Job, Pool
from convrec_r1.rollout.workers.room import of_worker
from convrec_r1.rollout.workers.weights import Version, publish
from convrec_r1.rollout.workers.worker import RolloutWorker


class WorkersEngine:
    """Workers that are started at the first `sync`, and again after `close`.

    Of several trainer processes the first one has the workers, for all: their prompts are gathered, and each gets its groups.
    A sync writes a new version of the weights to Ray's object store. What was submitted before keeps its own version.
    """

    constrains = True  # where the workers' engines do: `rollout.config.problems`

    def __init__(
        self,
        rollout: RolloutConfig,
        policy: Policy,
        *,
        max_length: int,
        cluster: ClusterConfig,
        constraint: Constraint | None = None,
    ) -> None:
        """
        Args:
            rollout: options of the workers' engines.
            policy: of the architecture that will be sampled; not sharded yet.
            constraint: that `openings` refer to.
        """
        self.rollout, self.max_length, self.cluster, self.constraint = rollout, max_length, cluster, constraint
        self.trainers = Channel()
        self.check = SyncCheck(getattr(rollout, "checksum_every", 1))
        self._bare = skeleton(policy)
        self._device = policy.device.type
        self._pool: Pool | None = None
        self._connection: Connection | None = None
        self._version: Version | None = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
        openings: Sequence[Opening] | None = None,
    ) -> list[list[Completion]]:
        return self.submit(prompts, seeds, sampling, on_progress, openings).result()

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
        openings: Sequence[Opening] | None = None,
    ) -> "Ordered":
        """Start to sample from the weights of the last `sync`. Every trainer process must call this, and then `result`."""
        held = openings or [None] * len(prompts)
        own = [(list(prompt), seed, opening) for prompt, seed, opening in zip(prompts, seeds, held, strict=True)]
        parts = self.trainers.gather(own)
        rank = self.trainers.rank
        start = sum(map(len, parts[:rank]))
        mine = range(start, start + len(own))
        job = None
        if rank == 0:

            def done(places: Sequence[int]) -> None:
                if on_progress and (new := sum(place in mine for place in places)):
                    on_progress(new * sampling.n)

            job = self._submit(list(chain(*parts)), sampling, done)
        told = on_progress if rank else None
        return Ordered(self, job, mine, (lambda: told(len(own) * sampling.n)) if told else None)

    def sync(self, policy: Policy) -> None:
        self._device = policy.device.type
        self.trainers.join()
        dtype, tied = self.trainers.share(self._open)
        weights = stream_weights(policy, dtype=getattr(torch, dtype) if dtype else None, tied=tied)
        problem: Exception | None = None
        number = self.check.syncs + 1
        if self.trainers.rank == 0:
            try:
                self._version = publish(weights, number, self.check, nixl=self.rollout.transfer == NIXL)
            except Exception as error:
                problem = error
        for _ in weights:  # where training is sharded, every process takes part in gathering
            pass

        def outcome() -> None:
            if problem:
                raise problem

        self.trainers.share(outcome)

    def metrics(self) -> dict[str, float]:
        """Return metrics of the workers since they were started, in the first process of the run."""
        if self._pool is None:
            return {}
        counts = self._pool.counts
        return {"rollout/workers": float(self._pool.live)} | {
            f"rollout/{name}": float(counts[name]) for name in ("faults", "restarts", "regenerated")
        }

    def close(self) -> None:
        self.trainers.leave()
        self._version = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def drop(self, job: Job) -> None:
        if self._pool is not None:
            self._pool.drop(job)

    def _submit(
        self,
        requests: Sequence[tuple[list[int], int, Opening | None]],
        sampling: Sampling,
        done: Callable[[Sequence[int]], None],
    ) -> Job:
        if self._pool is None or self._version is None:
            raise RuntimeError("sync() must come first: the workers have no weights.")
        job = Job(len(requests), done)
        lengths = [len(prompt) for prompt, *_ in requests]
        bundles = []
        for places in compose(lengths, sampling.n, self.rollout.capacity, self.rollout.workers):
            prompts, seeds, openings = zip(*(requests[place] for place in places), strict=True)
            held = None if None in openings else list(openings)
            request = Request(list(prompts), list(seeds), sampling, self._autocast(), held)
            bundles.append(Bundle(places, request, self._version, job))
        self._pool.submit(bundles)
        return job

    def _autocast(self) -> str | None:
        """Return the dtype of matrix products under which this process calls. None: no autocast."""
        if not torch.is_autocast_enabled(self._device):
            return None
        return str(torch.get_autocast_dtype(self._device)).removeprefix("torch.")

    def _open(self) -> tuple[str | None, bool]:
        """Start the workers if there are none. Return how they take weights (`Identity`): dtype and tied."""
        if self._pool is None:
            self._pool = self._start()
        first = self._pool.format.result()
        return first.dtype, first.tied

    def _start(self) -> Pool:
        rollout = self.rollout
        needed = of_worker(rollout, gpu=self._device == "cuda")
        self._connection = connect(self.cluster)
        self._connection.require([needed] * rollout.workers)
        import ray

        bare, constraint = ray.put(self._bare), ray.put(self.constraint)
        kind: Any = ray.remote(RolloutWorker)
        kind = kind.options(num_cpus=needed.cpus, num_gpus=needed.gpus, max_restarts=0, max_task_retries=0)
        threads, path = max(1, int(needed.cpus)), [os.path.abspath(entry) for entry in sys.path]

        def launch() -> tuple[Any, Any]:
            actor = kind.remote(rollout, self.max_length, threads, path)
            return actor, actor.ready.remote(bare, constraint)

        return Pool(
            launch,
            rollout.workers,
            retries=rollout.retries,
            timeout=rollout.timeout,
        )


class Ordered:
    """Groups that workers sample: those of this trainer process. A `Submitted`."""

    def __init__(
        self, engine: WorkersEngine, job: Job | None, mine: range, on_end: Callable[[], None] | None = None
    ) -> None:
        """job: None in other processes than the first."""
        self.engine, self.job, self.mine, self.on_end = engine, job, mine, on_end

    def done(self) -> bool:
        return self.job is not None and self.job.done()

    def result(self) -> list[list[Completion]]:
        """Wait for the groups. Every trainer process must call this."""
        groups = self.engine.trainers.share(lambda: self.job.result() if self.job else [])
        if self.on_end:
            self.on_end()
        return [groups[place] for place in self.mine]

    def cancel(self) -> None:
        if self.job is not None:
            self.engine.drop(self.job)
