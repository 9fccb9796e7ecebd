"""Remap: how close every catalog item is to what the teacher named and to what was said (design section 8).

Matrix products are made in tiles of one shape. A product rounds differently with its number of rows: BLAS picks other
kernels and splits the work otherwise. In tiles of TILE rows, each conversation always at the same place of its tile, its
scores are the same to the last bit whatever it is computed together with.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse

from convrec_r1.distill.config import RemapConfig
from convrec_r1.distill.embedders.base import Vectors

TILE = 128


@dataclass(frozen=True, eq=False)
class RemapInputs:
    """What the scores of M conversations over C catalog items are made of. T items were named by the teacher.

    lists          [M] for each conversation the teacher's items (rows of `teacher`), best first, each once; may be empty
    matches        [T] place of each teacher's item in the catalog, -1 where it is not there
    size           C
    catalog        [C, D] vectors of the catalog's items: all three dense or all three sparse, rows of length 1 or 0
    teacher        [T, D]
    conversations  [M, D]

    The vectors may be None where `RemapConfig.enabled` is false. Raises ValueError for shapes that contradict each other.
    """

    lists: Sequence[np.ndarray]
    matches: np.ndarray
    size: int
    catalog: Vectors | None = None
    teacher: Vectors | None = None
    conversations: Vectors | None = None

    def __post_init__(self) -> None:
        if len(self.matches) and not -1 <= self.matches.min() <= self.matches.max() < self.size:
            raise ValueError(f"matches must lie in -1..{self.size - 1}")
        vectors = [v for v in (self.catalog, self.teacher, self.conversations) if v is not None]
        if not vectors:
            return
        if len(vectors) < 3 or len({sparse.issparse(v) for v in vectors}) > 1:
            raise ValueError("vectors must be given for catalog, teacher and conversations, of one kind")
        rows = [self.size, len(self.matches), len(self.lists)]
        shapes = [_shape(v) for v in vectors]
        if [height for height, _ in shapes] != rows or len({width for _, width in shapes}) > 1:
            raise ValueError(f"vectors of shapes {shapes}, expected {rows} rows of one width")

    @cached_property
    def _product(self) -> "_Product":
        assert self.catalog is not None
        return _Dense(self.catalog) if isinstance(self.catalog, np.ndarray) else _Sparse(self.catalog)


def position_weights(k: int) -> np.ndarray:
    """1/sqrt(rank) for ranks 1 to k, [k] float32: what the teacher's first item counts, its second, ..."""
    return (1 / np.sqrt(np.arange(1, k + 1))).astype(np.float32)


def remap_block(inputs: RemapInputs, rows: Sequence[int] | np.ndarray, cfg: RemapConfig) -> np.ndarray:
    """Scores of the conversations `rows` for every catalog item, [B, C] float32.

        s = p^T (S_item + I_exact) + lambda s_context

    with p the position weights of the conversation's list, S_item the cosines of the teacher's items and the catalog's,
    I_exact 1 where the two are the same item, s_context the cosines of the conversation and the catalog's items. By
    linearity p^T S_item + lambda s_context = (p^T E_T + lambda e_x) E_C^T, so that one product with the catalog's vectors
    is enough and no [T, C] matrix is made.

    Teacher's items that match the same catalog item each add to it. Negative cosines stay negative. A conversation
    with an empty list is scored by its context alone. `cfg.enabled` false: s = p^T I_exact.
    A conversation's scores are the same to the last bit whatever else is in `rows`.
    """
    rows = np.asarray(rows, dtype=np.int64)
    lists = [np.asarray(inputs.lists[row], dtype=np.int64) for row in rows]
    lengths = np.array([len(ids) for ids in lists], dtype=np.int64)
    named = np.concatenate([np.empty(0, dtype=np.int64), *lists])  # [sum of lengths]
    longest = position_weights(int(lengths.max(initial=0)))
    weights = np.concatenate([np.empty(0, dtype=np.float32), *(longest[:length] for length in lengths)])
    scores = np.zeros((len(rows), inputs.size), dtype=np.float32)
    if cfg.enabled:
        if inputs.teacher is None or inputs.conversations is None:
            raise ValueError("Remap needs the vectors of the catalog, the teacher's items and the conversations")
        starts = np.concatenate([[0], np.cumsum(lengths)])
        p = sparse.csr_array((weights, named, starts), shape=(len(rows), len(inputs.matches)))
        queries = p @ inputs.teacher + inputs.conversations[rows] * np.float32(cfg.context_weight)  # [B, D]
        for part, places in _tiles(rows):
            scores[part] = inputs._product(queries[part], places)[places]
    places, row = inputs.matches[named], np.repeat(np.arange(len(rows)), lengths)
    known = places >= 0
    np.add.at(scores, (row[known], places[known]), weights[known])
    return scores


Index = slice | np.ndarray


def _tiles(rows: np.ndarray) -> list[tuple[Index, Index]]:
    """`rows` in parts that go into one tile each: which of `rows`, and their places in the tile."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    # A row that is asked for twice would need its place twice: its n-th occurrence goes into the n-th tile of its kind.
    occurrence = np.arange(len(rows)) - np.searchsorted(ascending, ascending)
    _, number = np.unique(np.stack([occurrence, ascending // TILE], axis=1), axis=0, return_inverse=True)
    parts = [order[number == n] for n in range(number.max(initial=-1) + 1)]
    return [(_as_slice(part), _as_slice(rows[part] % TILE)) for part in parts]


def _as_slice(index: np.ndarray) -> Index:
    """The same places as a slice where they follow one another: to index by a slice copies nothing."""
    follow = len(index) > 0 and np.array_equal(index, np.arange(index[0], index[0] + len(index)))
    return slice(int(index[0]), int(index[0]) + len(index)) if follow else index


def _shape(vectors: Vectors) -> tuple[int, int]:
    shape: Any = vectors.shape  # scipy has no types, and its code reads as if a matrix might have no shape
    return shape


class _Product(Protocol):
    def __call__(self, queries: Vectors, places: Index) -> np.ndarray:
        """[TILE, C] float32: the queries [B, D] at their places in the tile, times the catalog's vectors.

        The result lies in a buffer that the next call writes to.
        """
        ...


class _Dense:
    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32).T  # [D, C]
        self.tile = np.zeros((TILE, len(self.vectors)), dtype=np.float32)
        self.found = np.empty((TILE, self.vectors.shape[1]), dtype=np.float32)

    def __call__(self, queries: Vectors, places: Index) -> np.ndarray:
        assert isinstance(queries, np.ndarray)
        self.tile[places] = queries
        np.matmul(self.tile, self.vectors, out=self.found)
        self.tile[places] = 0
        return self.found


class _Sparse:
    """The catalog's sparse matrix times a dense tile of queries: torch's product of these uses every core."""

    def __init__(self, vectors: sparse.csr_array) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.vectors = torch.sparse_csr_tensor(
                torch.tensor(vectors.indptr, dtype=torch.int64),
                torch.tensor(vectors.indices, dtype=torch.int64),
                torch.tensor(vectors.data, dtype=torch.float32),
                size=_shape(vectors),
                check_invariants=True,
            )  # [C, D]
        # torch's memory is aligned. Where numpy's lies differs from run to run, and with it how a product may round.
        height, width = _shape(vectors)
        self.tile = torch.zeros((width, TILE))
        self.found = torch.empty((height, TILE))

    def __call__(self, queries: Vectors, places: Index) -> np.ndarray:
        assert not isinstance(queries, np.ndarray)
        tile = self.tile.numpy()
        place = np.repeat(np.arange(TILE)[places], np.diff(queries.indptr))
        tile[queries.indices, place] = queries.data
        torch.mm(self.vectors, self.tile, out=self.found)
        tile[queries.indices, place] = 0
        return self.found.numpy().T
