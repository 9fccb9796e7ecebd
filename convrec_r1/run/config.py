"""Options of the logger (conf/logger), and of task=kept."""

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


@dataclass
class KeptConfig:
    """Options of task=kept."""

    clear: list[str] = field(default_factory=list)
    """Keys to delete, or beginnings of keys, kinds (warm_starts, distilled, teacher_cache, models), or unused. Answers of
    teachers are deleted only by the kind's name: they were paid for."""
