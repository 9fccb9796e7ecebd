"""Options of the data: conf/data."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class PromptStyle(Enum):
    ours = "ours"
    published = "published"


@dataclass
class DataConfig:
    name: str = MISSING
    adapter: str = MISSING
    path: str | None = None
    catalog: str | None = None
    seed: int = 0
    """Of simulated data, and of the choice of conversations where a split is cut down."""
    train_size: int | None = None
    validation_size: int | None = None
    test_size: int | None = None
    prompt: PromptStyle = PromptStyle.ours
    instruction: str = MISSING
    """With {n}: what a prompt asks for (prompt: ours)."""
    domain: str = "items"
    """What the items are, in the plural: questions to a teacher speak of them."""
    demonstrations: str = "published"
    """What the warm start imitates. published: the dataset's own; conversations without one are left out. neighbours: where
    there are none, the ground truths, then what other training conversations name beside them. distilled: what Stage 1 makes
    of a teacher's answers (`distill`, `teacher`, `embedder`), made once and shared. Or a folder of task=distill."""
