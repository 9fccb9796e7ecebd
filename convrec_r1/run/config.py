"""Options of the logger: conf/logger."""

from dataclasses import dataclass, field
from enum import Enum

from convrec_r1.base.options import option


class LoggerKind(Enum):
    """Where metrics go besides metrics.jsonl."""

    wandb = "wandb"
    csv = "csv"
    none = "none"


@dataclass
class LoggerConfig:
    """Weights & Biases, or metrics.csv."""

    kind: LoggerKind = LoggerKind.none
    project: str = "convrec-r1"
    entity: str | None = None
    """W&B's user or team. null: the account's default."""
    mode: str = option("offline", choices=("offline", "online", "disabled"))
    tags: list[str] = field(default_factory=list)
