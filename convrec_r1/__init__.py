"""ConvRec-R1: train language models that answer a conversation with a ranked list of catalog items."""

from typing import TYPE_CHECKING

from convrec_r1.base.lazy import lazy

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from convrec_r1.serve.recommender import Recommender

__all__ = ["Recommender", "__version__"]

__version__ = "0.3.0.dev0"
"""The only place that says it: pyproject.toml reads it here. Keys of kept artifacts hold a digest of the code instead."""

__getattr__ = lazy(__name__, **{"serve.recommender": ["Recommender"]})
