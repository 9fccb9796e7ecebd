"""The collapse guard: detects training metrics that leave limits they were within before."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convrec_r1.modules.config import GuardConfig


@dataclass(frozen=True)
class Limit:
    """A limit: `low` <= mean of `metric` over the window <= `high`. `key` is the option that sets it."""

    key: str
    metric: str
    low: float = -math.inf
    high: float = math.inf


def limits(cfg: GuardConfig, n: int) -> list[Limit]:
    """Return the limits of `cfg` for lists of n items."""
    bounds = (
        ("min_list_length", "list/length", cfg.min_list_length, n, "low"),
        ("max_list_length", "list/length", cfg.max_list_length, n, "high"),
        ("min_in_catalog", "catalog/valid", cfg.min_in_catalog, 1, "low"),
        ("max_kl", "kl", cfg.max_kl, 1, "high"),
        ("min_entropy", "entropy", cfg.min_entropy, 1, "low"),
        ("max_entropy", "entropy", cfg.max_entropy, 1, "high"),
    )
    return [
        Limit(f"guard.{key}={bound:g}", metric, **{side: bound * unit})
        for key, metric, bound, unit, side in bounds
        if bound is not None
    ]


class Guard:
    """The collapse guard of one run.

    A limit is armed once the mean of a window is within it, and broken by the first later mean that is not. It breaks once
    per run, because a mean may cross a limit many times.
    """

    def __init__(self, cfg: GuardConfig, n: int) -> None:
        self.limits = limits(cfg, n)
        self.window = cfg.window
        self.seen: dict[str, deque[float]] = {}
        self.armed: set[str] = set()
        self.broken: set[str] = set()

    def observe(self, values: Mapping[str, float]) -> list[str]:
        """Add the training metrics of a step. Return a message for each limit that it breaks."""
        for metric in {limit.metric for limit in self.limits} & values.keys():
            self.seen.setdefault(metric, deque(maxlen=self.window)).append(float(values[metric]))
        messages = []
        for limit in self.limits:
            window = self.seen.get(limit.metric, ())
            if len(window) < self.window:
                continue
            mean = sum(window) / len(window)
            if limit.low <= mean <= limit.high:  # never for NaN
                self.armed.add(limit.key)
            elif limit.key in self.armed - self.broken:
                self.broken.add(limit.key)
                bound = f"above {limit.high:g}" if mean > limit.high else f"below {limit.low:g}"
                bound = "NaN" if math.isnan(mean) else bound
                messages.append(f"{limit.metric} = {mean:.4g} is {bound} ({limit.key}), mean of {self.window} steps")
        return messages

    def state_dict(self) -> dict[str, Any]:
        seen = {name: list(window) for name, window in self.seen.items()}
        return {"seen": seen, "armed": sorted(self.armed), "broken": sorted(self.broken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = {name: deque(values, maxlen=self.window) for name, values in state["seen"].items()}
        self.armed, self.broken = set(state["armed"]), set(state["broken"])
