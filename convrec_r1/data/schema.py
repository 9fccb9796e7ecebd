"""The one schema that every dataset is read into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from convrec_r1.data.catalog import Catalog
from convrec_r1.lists import Item

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is "user" (the seeker) or "assistant" (the recommender); "system" in published prompts only."""

    role: Literal["user", "assistant", "system"]
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation up to the point where recommendations are due, and what is known of the right answer."""

    id: str
    cluster: str
    """The same for conversations with the same context (Reddit-v2 has one per replying user). The unit of resampling."""
    messages: tuple[Message, ...]
    ground_truth: tuple[Item, ...]
    seen: tuple[str, ...] = ()
    """Titles that the conversation names already. Recommending them earns no reward."""
    demonstration: tuple[Item, ...] | None = None
    """A ranked list of catalog items, for the warm start."""
    split: Split = "train"
    has_instruction: bool = False
    """Whether the messages are a complete published prompt with its instruction."""


@dataclass(frozen=True)
class Dataset:
    """What an adapter returns: the catalog and the conversations of each split, in a fixed order."""

    catalog: Catalog
    splits: Mapping[str, Sequence[Conversation]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict, compare=False)
    """Digests that are known already, by name (`load.digests`)."""
    folder: Path | None = field(default=None, compare=False)
    """Folder of the prepared data that the conversations are read from. None: they are in memory."""

    def __getitem__(self, split: str) -> Sequence[Conversation]:
        return self.splits[split]
