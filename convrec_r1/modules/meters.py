"""Metrics of a step, aggregated over micro-batches and devices independently of how the batch was split."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from convrec_r1.modules.step import StepModule


class Meter:
    """Collector of weighted means, sums, minima and maxima; `reduce` aggregates them over devices.

    A sum is over the micro-batches and devices of one update. Of several updates, merged, the mean is taken.
    """

    def __init__(self) -> None:
        self._means: dict[str, list] = {}  # name -> [sum of value * weight, sum of weights]
        self._sums: dict[str, tuple[Tensor | float, int]] = {}  # name -> sum, updates
        self._max: dict[str, Tensor] = {}

    def mean(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add a value to a weighted mean."""
        entry = self._means.setdefault(name, [0.0, 0.0])
        entry[0] = entry[0] + torch.as_tensor(value).detach().double().cpu() * torch.as_tensor(weight).cpu()
        entry[1] = entry[1] + torch.as_tensor(weight).cpu()

    def sum(self, name: str, value: Tensor) -> None:
        """Add a value to a sum."""
        self._sums[name] = self._sums.get(name, (0.0, 1))[0] + value.detach(), 1

    def max(self, name: str, value: Tensor) -> None:
        """Add a value to a maximum."""
        value = value.detach().float()
        self._max[name] = torch.maximum(self._max[name], value) if name in self._max else value

    def min(self, name: str, value: Tensor) -> None:
        """Add a value to a minimum."""
        self.max(f"-{name}", -value)

    def update(self, values: Mapping[str, Tensor], weight: Tensor | float) -> None:
        """Add scalars by name: a maximum or minimum if the name ends in /max or /min, else a weighted mean."""
        for name, value in values.items():
            if name.endswith("/max"):
                self.max(name, value)
            elif name.endswith("/min"):
                self.min(name, value)
            else:
                self.mean(name, value, weight)

    def merge(self, other: "Meter") -> None:
        """Add the values of another meter, that of another update."""
        for name, (total, weight) in other._means.items():
            entry = self._means.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + total, entry[1] + weight
        for name, (value, updates) in other._sums.items():
            total, before = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, before + updates
        for name, value in other._max.items():
            self.max(name, value)

    def reduce(self, module: "StepModule") -> dict[str, float]:
        """Return each metric aggregated over all devices, the same on every process."""
        values = {}
        for name, (total, weight) in self._means.items():
            weight = float(module.sum_over_devices(weight))
            values[name] = float(module.sum_over_devices(total)) / weight if weight else 0.0
        values |= {name: float(module.sum_over_devices(total)) / n for name, (total, n) in self._sums.items()}
        for name, value in self._max.items():
            extreme = float(module.max_over_devices(value))
            values[name.removeprefix("-")] = -extreme if name.startswith("-") else extreme
        return values


class Clock:
    """Stopwatch for the parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = {}
        self._start = self._last = self._now()

    def lap(self, name: str) -> None:
        """End the part `name`, or a further piece of it, and begin the next one."""
        now = self._now()
        self.parts[name] = self.parts.get(name, 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        """Return the seconds of all parts."""
        return self._last - self._start

    def seconds(self) -> dict[str, float]:
        """Return time/<part> for each part, and time/step."""
        return {f"time/{name}": value for name, value in self.parts.items()} | {"time/step": self.total()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def group_statistics(meter: Meter, reward: Tensor, credited: Tensor, group_size: int) -> None:
    """Add reward, reward_std (within groups) and frac_reward_zero_std to `meter`.

    frac_reward_zero_std is the share of units whose rewards are equal in a group, so that their advantages are 0.

    Args:
        meter: where to add them.
        reward: [B], reward of each list.
        credited: [B, U], the values that advantages are computed from: the return of each rank, or the list's reward.
        group_size: G.
    """
    groups = reward.unflatten(0, (-1, group_size))  # [P, G]
    units = credited.unflatten(0, (-1, group_size))  # [P, G, U]
    meter.mean("reward", reward.mean())
    meter.mean("reward_std", groups.std(1).mean() if group_size > 1 else 0.0)
    same = units.amax(1) == units.amin(1)  # [P, U]
    meter.mean("frac_reward_zero_std", same.float().mean())
