"""Sample each step's rollouts: when the step needs them, or one step ahead while the previous step trains."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from convrec_r1.rollout.base import Completion, RolloutEngine, Sampling


@dataclass(frozen=True)
class Order:
    """The prompts and seeds of one step."""

    step: int
    prompts: list[list[int]]  # P prompts
    seeds: list[int]  # [P]


@dataclass(frozen=True)
class Sampled:
    """The rollouts of one step."""

    order: Order
    groups: list[list[Completion]]  # P groups of G
    version: int
    """Optimizer steps behind the weights that they were sampled from."""

    @property
    def staleness(self) -> int:
        """Steps between those weights and the weights that the step starts from."""
        return self.order.step - self.version


class Pipeline:
    """Samples orders with one engine, one at a time, and never while the engine's weights change.

    overlap 0: `take` samples from the present weights. overlap 1: `ahead` starts the next order in a thread, `wait` waits for
    its end before the weights are synced, and `take` returns it: its weights are one step stale, never more.
    """

    def __init__(self, engine: RolloutEngine, sampling: Sampling, overlap: int) -> None:
        self.engine, self.sampling, self.overlap = engine, sampling, overlap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._ahead: Future[Sampled] | None = None

    def take(self, order: Order, version: int) -> Sampled:
        """Return the rollouts of `order`, sampled ahead or now. version: steps that the present weights were trained for."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            sampled = ahead.result()
            if sampled.order == order:
                return sampled
        return self._sample(order, version)

    def ahead(self, order: Order | None, version: int) -> None:
        """Start to sample the next step's order, if there is one and overlap is on."""
        if self.overlap and order is not None:
            self._ahead = self._thread.submit(self._sample, order, version)

    def wait(self) -> None:
        """Wait until nothing is being sampled. Raises the error of sampling ahead, if there was one."""
        if self._ahead is not None:
            self._ahead.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        """Rollouts that were sampled ahead, as plain lists and tensors: a resumed run trains on the same lists."""
        if self._ahead is None:
            return {}
        done = self._ahead.result()
        groups = [
            [(torch.from_numpy(c.ids), torch.from_numpy(c.logprobs), c.finish_reason) for c in group]
            for group in done.groups
        ]
        return {"order": vars(done.order), "groups": groups, "version": done.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        groups = [
            [Completion(ids.numpy(), logps.numpy(), why) for ids, logps, why in group] for group in state["groups"]
        ]
        self._ahead = Future()
        self._ahead.set_result(Sampled(Order(**state["order"]), groups, state["version"]))

    def _sample(self, order: Order, version: int) -> Sampled:
        return Sampled(order, self.engine.generate(order.prompts, order.seeds, self.sampling), version)
