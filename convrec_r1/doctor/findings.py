"""What the doctor says: one finding a check."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    OK = "OK"
    WARN = "WARN"
    """The run may go on, but perhaps not as it was meant."""
    FAIL = "FAIL"
    """The run cannot work."""


@dataclass(frozen=True)
class Finding:
    check: str
    found: str
    level: Level = Level.OK
    advice: str = ""


def failures(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is Level.FAIL]


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds for people: two digits are more than an estimate is good for."""
    for unit, many in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * many:
            return f"{seconds / many:.2g} {unit}" if seconds < 100 * many else f"{seconds / many:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
