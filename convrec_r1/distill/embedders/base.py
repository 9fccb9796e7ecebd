"""What an embedder is."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import sparse

Vectors = np.ndarray | sparse.csr_array
"""[M, D] float32, each row of length 1, or 0 where a text has nothing that the embedder knows. The dot product of two is
their cosine similarity."""


class Embedder(Protocol):
    """Made by `make_embedder(cfg)`; `fit` comes first, once."""

    def fit(self, items: Sequence[str]) -> None:
        """Learn the vocabulary from the items' texts; nothing to do for a pretrained model."""
        ...

    def items(self, texts: Sequence[str]) -> Vectors: ...

    def conversations(self, texts: Sequence[str]) -> Vectors: ...
