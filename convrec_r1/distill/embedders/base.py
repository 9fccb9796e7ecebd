"""The protocol of an embedder."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from scipy import sparse

Vectors = np.ndarray | sparse.csr_array
"""[M, D] float32, dense or sparse. Each row has length 1, or is 0 for a text without anything the embedder knows. The dot
product of two rows is their cosine similarity."""


@runtime_checkable
class Embedder(Protocol):
    """Texts -> vectors: what `embedder._target_` names. A class of your own gets the other keys of `embedder` as arguments."""

    def embed(self, items: Sequence[str], conversations: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Return the vectors of the items [M, D] and of the conversations [K, D], both dense or both sparse.

        Called once, with all texts: a vocabulary can be learned from the items here.

        Args:
            items: `Title (Year)`, then genres, keywords, people and plot where they are known, one a line.
            conversations: one turn a line, each after `User: ` or `Recommender: `.
        Raises:
            UserError: a model cannot be loaded.
        """
        ...
