"""One conversation's answer and what it is worth: a line of eval/<split>.jsonl."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation's answer and what it is worth."""

    id: str
    cluster: str
    text: str
    n_relevant: int
    hits: tuple[int, ...]
    """Relevance of each rank, 0 or 1."""
    covered: tuple[int, ...]
    """Places in the catalog of the distinct items recommended within the first n ranks."""
    metrics: dict[str, float]
    """By name. A metric that is not defined for this sample (recall_head@20 without a popular ground truth) is absent."""
