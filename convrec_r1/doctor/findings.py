"""Findings of task=doctor, one per check."""

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How serious a finding is."""

    OK = "OK"
    WARN = "WARN"
    """The run works, but perhaps not as it was meant."""
    FAIL = "FAIL"
    """The run cannot work."""


@dataclass(frozen=True)
class Finding:
    """The result of one check, and what to do."""

    check: str
    found: str
    level: Level = Level.OK
    advice: str = ""
