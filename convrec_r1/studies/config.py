"""Options of a comparison."""

from dataclasses import dataclass


@dataclass
class CompareConfig:
    """task=compare."""

    baseline: str | None = None
    """The system that others are held against, by its label or algorithm; null: grpo, else sft, else the first."""
    metric: str | None = None
    """The metric of curves, figures and tests; null: the runs' own eval.metric."""
    examples: int = 6
    """Conversations that are shown with every system's list."""
