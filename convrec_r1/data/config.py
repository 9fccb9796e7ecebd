"""Options of the data: conf/data."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from convrec_r1.base.options import option

DEMONSTRATIONS = ("published", "neighbours", "distilled")


class PromptStyle(Enum):
    """Whose words ask for recommendations: `data.instruction`, or the dataset's own prompt where it publishes one."""

    ours = "ours"
    published = "published"


@dataclass
class DataConfig:
    """A dataset: the adapter class that reads it, and what every dataset has."""

    _target_: str = MISSING
    """The adapter: an `Adapter` (convrec_r1/data/adapters/base.py)."""
    name: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    """Options of an adapter of your own: its keyword arguments."""
    path: str | None = None
    """File or folder that the adapter reads."""
    catalog: str | None = None
    """File of the items that may be recommended. null: the dataset's own."""
    seed: int = option(0, least=0)
    """Seed of simulated data, and of the choice of conversations where a split is cut to size."""
    train_size: int | None = option(None, least=1, hint="null: all conversations.")
    validation_size: int | None = option(None, least=1, hint="null: all conversations.")
    test_size: int | None = option(None, least=1, hint="null: all conversations.")
    prompt: PromptStyle = PromptStyle.ours
    instruction: str = (
        "You are a recommender. Read the conversation below and reply with {n} recommendations, best first. Write one item a "
        "line as Title (Year), or only the title where there is no year, and nothing else."
    )
    """Asks for recommendations, before the conversation (`prompt: ours`). {n} stands for `n`."""
    domain: str = "items"
    """What the items are, in the plural: questions to a teacher use the word."""
    exclude_seen: bool = True
    """Titles that the conversation names already earn nothing. false: they count like all others, as in older evaluations;
    where the recommender names such a title again, it is a ground truth."""
    demonstrations: str = "published"
    """What the warm start imitates. published: the dataset's own; conversations without one are left out. neighbours: where
    there are none, the ground truths, then what other training conversations name beside them. distilled: what Stage 1 makes
    of a teacher's answers (`distill`, `teacher`, `embedder`), made once and shared. Or a folder of task=distill."""

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> wanted number of conversations, of the splits that have a limit."""
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        return {split: size for split, size in sizes.items() if size is not None}


@dataclass
class FilmsConfig(DataConfig):
    """Defaults of datasets of films with years."""

    domain: str = "movies"
    instruction: str = (
        "You are a movie recommender. Read the conversation below and reply with {n} recommendations, best first. Write one "
        "movie a line as Title (Year), with the standardized English title and the release year, and nothing else."
    )


@dataclass
class TitlesConfig(DataConfig):
    """Defaults of datasets of titles without years."""

    instruction: str = (
        "You are a recommender. Read the conversation below and reply with {n} recommendations, best first. Write one title a "
        "line, without the year, and nothing else."
    )
