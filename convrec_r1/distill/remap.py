"""Remap: similarity of every catalog item to the teacher's items and to the conversation (Stage 1 of arXiv 2510.20150)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from convrec_r1.distill.config import RemapConfig
from convrec_r1.distill.embedders.base import Vectors


@dataclass(frozen=True, eq=False)
class RemapInputs:
    """Inputs of the scores of M conversations over C catalog items; the teacher named T different items.

    Vectors are all dense or all sparse, and may be None if `RemapConfig.enabled` is false. Raises ValueError for shapes that
    do not fit each other.
    """

    lists: Sequence[np.ndarray]
    """[M] the teacher's items of each conversation (rows of `teacher`), best first, each once; may be empty."""
    matches: np.ndarray
    """[T] place of each teacher's item in the catalog. -1: none."""
    size: int
    """C."""
    catalog: Vectors | None = None
    """[C, D]"""
    teacher: Vectors | None = None
    """[T, D]"""
    conversations: Vectors | None = None
    """[M, D]"""

    def __post_init__(self) -> None:
        if len(self.matches) and not -1 <= self.matches.min() <= self.matches.max() < self.size:
            raise ValueError(f"matches must lie in -1..{self.size - 1}")
        vectors: list[Any] = [v for v in (self.catalog, self.teacher, self.conversations) if v is not None]
        if not vectors:
            return
        if len(vectors) < 3 or len({sparse.issparse(v) for v in vectors}) > 1:
            raise ValueError("vectors must be given for catalog, teacher and conversations, of one kind")
        rows, shapes = [self.size, len(self.matches), len(self.lists)], [v.shape for v in vectors]
        if [height for height, _ in shapes] != rows or len({width for _, width in shapes}) > 1:
            raise ValueError(f"vectors of shapes {shapes}, expected {rows} rows of one width")


def position_weights(k: int) -> np.ndarray:
    """Return 1/sqrt(rank) for ranks 1 to k, [k] float32."""
    return (1 / np.sqrt(np.arange(1, k + 1))).astype(np.float32)


def remap_block(inputs: RemapInputs, rows: range, cfg: RemapConfig) -> np.ndarray:
    """Return the scores of the conversations `rows` for every catalog item, [B, C] float32.

        s = p^T (S_item + I_exact) + lambda s_context

    p: position weights of the conversation's list; S_item: cosines of the teacher's items and the catalog's; I_exact: 1 where
    both are the same item; s_context: cosines of the conversation and the catalog's items. By linearity
    p^T S_item + lambda s_context = (p^T E_T + lambda e_x) E_C^T: one product, and no [T, C] matrix.

    Several teacher's items that match one catalog item each add to it. Negative cosines stay negative. A conversation with
    an empty list is scored by its context alone. `cfg.enabled` false: s = p^T I_exact.
    """
    lists = inputs.lists[rows.start : rows.stop]
    named = np.concatenate([np.empty(0, dtype=np.int64), *lists])
    weights = np.concatenate([position_weights(0), *(position_weights(len(ids)) for ids in lists)])
    starts = np.cumsum([0, *map(len, lists)])
    p = sparse.csr_array((weights, named, starts), shape=(len(rows), len(inputs.matches)))
    known = np.flatnonzero(inputs.matches >= 0)
    same = (np.ones(len(known), dtype=np.float32), (known, inputs.matches[known]))
    exact: Any = p @ sparse.csr_array(same, shape=(len(inputs.matches), inputs.size))
    if not cfg.enabled:
        return exact.toarray()
    if inputs.catalog is None or inputs.teacher is None or inputs.conversations is None:
        raise ValueError("Remap needs the vectors of the catalog, the teacher's items and the conversations")
    context: Any = inputs.conversations[rows.start : rows.stop]
    product: Any = (p @ inputs.teacher + context * np.float32(cfg.context_weight)) @ inputs.catalog.T
    return exact.toarray() + (product.toarray() if sparse.issparse(product) else product)


def remap_rows(rows: range, inputs: RemapInputs, cfg: RemapConfig) -> np.ndarray:
    """Return `remap_block` of `rows`: the block comes first, for cluster.blocks."""
    return remap_block(inputs, rows, cfg)
