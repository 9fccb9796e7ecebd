"""Format numbers and names of metrics for tables, figures and sentences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convrec_r1.evaluate.labels import metric_order, metric_style
from convrec_r1.evaluate.metrics.base import Label

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_SMALLEST_P = 0.001


@dataclass(frozen=True)
class Writer:
    """Formats names and values of metrics."""

    foreign: Mapping[str, Any] = field(default_factory=dict)
    """Labels of users' metrics, as in summary.json: name -> fields of `Label`."""

    def style(self, metric: str) -> Label:
        """Return label, group and unit of a metric. A metric without a label keeps its name."""
        return metric_style(metric, self.foreign)

    def label(self, metric: str) -> str:
        """Return the name of a metric in tables and figures."""
        return self.style(metric).label

    def order(self, metric: str) -> tuple:
        """Return a sort key: by group, then in reading order."""
        return metric_order(metric, self.foreign)

    def number(self, value: float | None, metric: str = "") -> str:
        """Return a value of `metric` as text."""
        if value is None or math.isnan(value):
            return NONE
        if math.isinf(value):
            return "∞" if value > 0 else f"{MINUS}∞"
        if metric and self.style(metric).percent:
            return f"{100 * value:.1f} %"
        return f"{value:.{self.style(metric).digits}f}".replace("-", MINUS)

    def signed(self, value: float | None, metric: str = "") -> str:
        """Return a difference of `metric` with its sign. Differences of shares are in percentage points."""
        if value is None or not math.isfinite(value):
            return self.number(value)
        percent = metric and self.style(metric).percent
        written = f"{100 * value:+.1f}" if percent else f"{value:+.{self.style(metric).digits}f}"
        if not written.strip("+-0."):
            written = written[1:]  # zero has no sign
        return written.replace("-", MINUS)

    def span(self, low: float, high: float, metric: str = "", *, signs: bool = False) -> str:
        """Return an interval as text. signs: write the signs of both ends."""
        if math.isnan(low) or math.isnan(high):
            return NONE
        write = self.signed if signs else self.number
        return " to ".join(write(end, metric).removesuffix(" %") for end in (low, high))


def p_value(p: float) -> str:
    """Return a p-value with three digits."""
    if math.isnan(p):
        return NONE
    return f"< {_SMALLEST_P}" if p < _SMALLEST_P else f"{p:.3f}"


def effect_size(value: float) -> str:
    """Return an effect size with two digits. From 100 on it is written as infinite."""
    if abs(value) >= 100:
        return Writer().number(math.copysign(math.inf, value))
    return NONE if math.isnan(value) else f"{value:.2f}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds."""
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def short(text: str, longest: int) -> str:
    """Return text on one line, cut to `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
