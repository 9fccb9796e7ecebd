"""Sample each step's rollouts: when the step needs them, or some steps ahead while earlier steps train."""

from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch

from convrec_r1.rollout.base import Completion, RolloutEngine, Sampling, Submitted
from convrec_r1.rollout.constraint import Opening


@dataclass(frozen=True)
class Order:
    """The prompts and seeds of one step."""

    step: int
    prompts: list[list[int]]  # P prompts
    seeds: list[int]  # [P]
    openings: list[Opening] | None = None  # [P], of the lists of each prompt. None: they are held to nothing

    def state_dict(self) -> dict[str, Any]:
        """Return the order as plain lists."""
        openings = [(opening.n, list(opening.closed)) for opening in self.openings or ()]
        return vars(self) | {"openings": openings if self.openings is not None else None}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Order":
        """Return the order of a `state_dict`. Those of older versions have no openings."""
        order = cls(**state)
        if order.openings is None:
            return order
        return replace(order, openings=[Opening(n, tuple(closed)) for n, closed in state["openings"]])


@dataclass(frozen=True)
class Sampled:
    """The rollouts of one step."""

    order: Order
    groups: list[list[Completion]]  # P groups of G
    version: int
    """Steps that the weights they were sampled from were trained for."""

    @property
    def staleness(self) -> int:
        """Steps between those weights and the weights that the step starts from."""
        return self.order.step - self.version


@dataclass(frozen=True)
class _Ahead:
    order: Order
    version: int
    groups: Submitted


class Pipeline:
    """Samples orders with one engine.

    With overlap k, step s trains on rollouts from the weights after step s - k, always: the orders of the first k + 1 steps are
    submitted at the start, and each further one as soon as its weights are there. With overlap 0 `take` samples from the
    present weights.
    """

    def __init__(self, engine: RolloutEngine, sampling: Sampling, overlap: int) -> None:
        self.engine, self.sampling, self.overlap = engine, sampling, overlap
        self._ahead: dict[int, _Ahead] = {}  # by step

    def has(self, step: int) -> bool:
        """Whether the order of a step was submitted, and its rollouts not taken."""
        return step in self._ahead

    def submit(self, order: Order, version: int) -> None:
        """Start to sample a coming step. version: steps that the engine's present weights were trained for."""
        engine: Any = self.engine
        groups = engine.submit(order.prompts, order.seeds, self.sampling, **_held(order))
        self._ahead[order.step] = _Ahead(order, version, groups)

    def take(self, order: Order, version: int) -> Sampled:
        """Return the rollouts of `order`, sampled ahead or now. version: steps that the present weights were trained for.

        Raises the error of sampling, if there was one.
        """
        ahead = self._ahead.pop(order.step, None)
        if ahead is not None:
            groups = ahead.groups.result()
            if ahead.order == order:
                return Sampled(order, groups, ahead.version)
        groups = self.engine.generate(order.prompts, order.seeds, self.sampling, **_held(order))
        return Sampled(order, groups, version)

    def ready(self) -> int:
        """Return the number of steps whose rollouts are sampled. 0: the trainer has to wait."""
        return sum(ahead.groups.done() for ahead in self._ahead.values())

    def close(self) -> None:
        """Drop what was submitted."""
        for ahead in self._ahead.values():
            ahead.groups.cancel()
        self._ahead.clear()

    def state_dict(self, version: int) -> dict[str, Any]:
        """Return the rollouts sampled ahead, as plain lists and tensors: a resumed run trains on the same lists.

        Waits until they are sampled. Orders for the present weights are left out: a resumed run submits them again.

        version: steps that the present weights were trained for.
        """
        steps = []
        for ahead in self._ahead.values():
            if ahead.version < version:
                groups = [
                    [(torch.from_numpy(c.ids), torch.from_numpy(c.logprobs), c.finish_reason) for c in group]
                    for group in ahead.groups.result()
                ]
                steps.append({"order": ahead.order.state_dict(), "groups": groups, "version": ahead.version})
        return {"steps": steps} if steps else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for saved in state.get("steps", []):
            done: Future[list[list[Completion]]] = Future()
            done.set_result(
                [
                    [Completion(ids.numpy(), logps.numpy(), why) for ids, logps, why in group]
                    for group in saved["groups"]
                ]
            )
            order = Order.of_state(saved["order"])
            self._ahead[order.step] = _Ahead(order, saved["version"], done)


def _held(order: Order) -> dict[str, Any]:
    """Return the argument that holds lists to the catalog, for engines that take it: others are called without it."""
    return {} if order.openings is None else {"openings": order.openings}
