"""Options of the logger: conf/logger."""

from dataclasses import dataclass, field
from enum import Enum


class LoggerKind(Enum):
    wandb = "wandb"
    csv = "csv"
    none = "none"


@dataclass
class LoggerConfig:
    kind: LoggerKind = LoggerKind.none
    project: str = "convrec-r1"
    entity: str | None = None
    mode: str = "offline"
    tags: list[str] = field(default_factory=list)
