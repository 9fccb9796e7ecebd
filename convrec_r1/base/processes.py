"""Which of a run's processes this one is."""

from pytorch_lightning.utilities import rank_zero_only


def global_rank() -> int:
    """0 for the first process of a run, and where there is no other. Known before the processes have found each other."""
    return getattr(rank_zero_only, "rank", 0)  # Lightning keeps it on the function
