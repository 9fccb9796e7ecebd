"""A scored answer: a line of eval/<split>.jsonl."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """The answer to one conversation, with its hits and metrics."""

    id: str
    cluster: str
    text: str
    n_relevant: int
    hits: tuple[int, ...]
    """Relevance of each rank, 0 or 1."""
    covered: tuple[int, ...]
    """Catalog indices of the distinct items at the first n ranks."""
    metrics: dict[str, float]
    """Values by name. A metric that is not defined for this sample (recall_head@20 without a head item) is absent."""
