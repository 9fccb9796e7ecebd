"""Each step's rollouts: sampled when the step asks for them, or one step ahead, while the step before trains."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from convrec_r1.rollout.base import Completion, RolloutEngine, Sampling


@dataclass(frozen=True)
class Order:
    """What is to be sampled for a step."""

    step: int
    prompts: list[list[int]]  # P prompts
    seeds: list[int]  # [P]


@dataclass(frozen=True)
class Sampled:
    """An order, carried out."""

    order: Order
    groups: list[list[Completion]]  # P groups of G
    version: int
    """Steps that the weights had been trained for that they were sampled from."""

    @property
    def staleness(self) -> int:
        """Steps between those weights and the ones that the order's step starts from."""
        return self.order.step - self.version


class Pipeline:
    """Carries out orders with one engine. At most one is under way, and none while the engine's weights change.

    overlap 0: `take` samples with the weights as they are. overlap 1: `ahead` has the next order carried out in a thread
    of its own, `wait` ends it before the weights are synced, and `take` hands it over: it is one step old, never more.
    """

    def __init__(self, engine: RolloutEngine, sampling: Sampling, overlap: int) -> None:
        self.engine, self.sampling, self.overlap = engine, sampling, overlap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._coming: Future[Sampled] | None = None

    def take(self, order: Order, version: int) -> Sampled:
        """The rollouts of `order`: those that were sampled ahead, else sampled now from the weights of `version`."""
        coming, self._coming = self._coming, None
        if coming is not None:
            sampled = coming.result()
            if sampled.order == order:
                return sampled
        return self._carry_out(order, version)

    def ahead(self, order: Order | None, version: int) -> None:
        """Start on the next step's order, if there is one and rollouts are to overlap."""
        if self.overlap and order is not None:
            self._coming = self._thread.submit(self._carry_out, order, version)

    def wait(self) -> None:
        """Until nothing is being sampled. Raises what went wrong in sampling ahead."""
        if self._coming is not None:
            self._coming.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        """What was sampled ahead, as plain lists and tensors: a run that goes on from here trains on the same lists."""
        if self._coming is None:
            return {}
        done = self._coming.result()
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
        self._coming = Future()
        self._coming.set_result(Sampled(Order(**state["order"]), groups, state["version"]))

    def _carry_out(self, order: Order, version: int) -> Sampled:
        return Sampled(order, self.engine.generate(order.prompts, order.seeds, self.sampling), version)
