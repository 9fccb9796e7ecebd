"""Options of a comparison."""

from dataclasses import dataclass

from convrec_r1.base.options import option


@dataclass
class CompareConfig:
    """task=compare."""

    baseline: str | None = None
    """System to compare the others with: its label or algorithm. null: grpo, else sft, else the first."""
    metric: str | None = None
    """Metric of curves, figures and tests. null: `eval.metric` of the runs."""
    examples: int = option(6, least=0)
    """Number of conversations shown with the lists of all systems."""
