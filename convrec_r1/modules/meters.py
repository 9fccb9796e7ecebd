"""Numbers of a step, put together over micro-batches and devices so that the cut does not show in them."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from convrec_r1.modules.step import StepModule


class Meter:
    """Collects weighted means, sums and extremes; `reduce` merges the devices."""

    def __init__(self) -> None:
        self._means: dict[str, list] = {}  # name -> [sum of value * weight, sum of weights]
        self._sums: dict[str, Tensor | float] = {}
        self._max: dict[str, Tensor] = {}

    def mean(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        entry = self._means.setdefault(name, [0.0, 0.0])
        entry[0] = entry[0] + torch.as_tensor(value).detach().double().cpu() * torch.as_tensor(weight).cpu()
        entry[1] = entry[1] + torch.as_tensor(weight).cpu()

    def sum(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def max(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self._max[name] = torch.maximum(self._max[name], value) if name in self._max else value

    def min(self, name: str, value: Tensor) -> None:
        self.max(f"-{name}", -value)

    def update(self, values: Mapping[str, Tensor], weight: Tensor | float) -> None:
        """Take in scalars by name: /max and /min at the end of a name keep the extreme, all others their weighted mean."""
        for name, value in values.items():
            if name.endswith("/max"):
                self.max(name, value)
            elif name.endswith("/min"):
                self.min(name, value)
            else:
                self.mean(name, value, weight)

    def merge(self, other: "Meter") -> None:
        """Take in what another meter has collected."""
        for name, (total, weight) in other._means.items():
            entry = self._means.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + total, entry[1] + weight
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        for name, value in other._max.items():
            self.max(name, value)

    def reduce(self, module: "StepModule") -> dict[str, float]:
        values = {}
        for name, (total, weight) in self._means.items():
            weight = float(module.sum_over_devices(weight))
            values[name] = float(module.sum_over_devices(total)) / weight if weight else 0.0
        values |= {name: float(module.sum_over_devices(value)) for name, value in self._sums.items()}
        for name, value in self._max.items():
            extreme = float(module.max_over_devices(value))
            values[name.removeprefix("-")] = -extreme if name.startswith("-") else extreme
        return values


class Clock:
    """Seconds of each part of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = {}
        self._start = self._last = self._now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.parts[name] = now - self._last
        self._last = now

    def total(self) -> float:
        return self._last - self._start

    def seconds(self) -> dict[str, float]:
        return {f"time/{name}": value for name, value in self.parts.items()} | {"time/step": self.total()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def group_statistics(meter: Meter, reward: Tensor, credited: Tensor, group_size: int) -> None:
    """reward, its spread within groups, and the share of units that teach nothing.

    reward: [B].  credited: [B, U], what the algorithm's advantage is taken of: each rank's return, or the list's reward.
    """
    groups = reward.unflatten(0, (-1, group_size))  # [P, G]
    units = credited.unflatten(0, (-1, group_size))  # [P, G, U]
    meter.mean("reward", reward.mean())
    meter.mean("reward_std", groups.std(1).mean() if group_size > 1 else 0.0)
    same = units.amax(1) == units.amin(1)  # [P, U]
    meter.mean("frac_reward_zero_std", same.float().mean())
