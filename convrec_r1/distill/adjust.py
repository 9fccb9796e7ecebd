"""Adjust: correct the scores of each item by how often users want it (Stage 1 of arXiv 2510.20150).

    s_final = w * s + b,   w, b in R^C shared by all conversations

minimise  - sum over (conversation x, ground truth t) of log softmax(w * s_x + b)_t  +  strength (|w - 1|^2 + |b|^2)

A sum over all pairs, not their mean: the regulariser is a normal prior with variance 1 / (2 strength) around w = 1, b = 0,
and matters less the more pairs there are. An item that is never wanted is lowered by all conversations.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import bar
from convrec_r1.cluster.blocks import LOOP, Blocks
from convrec_r1.distill.scores import ScoreStore, blocks

_AT_A_TIME = 2**22
"""Scores in a block. Fixed, so that sums have the same order on every machine."""
_PRECISE = 2**24
"""Scores up to which softmaxes are computed in float64. With more, float32 is precise enough and three times faster."""
_MOST_ITERATIONS = 500

Read = Callable[[np.ndarray], np.ndarray]
"""Rows -> their scores, [B, C] float32."""


@dataclass(frozen=True, eq=False)
class Adjustment:
    w: np.ndarray
    """[C] float64."""
    b: np.ndarray
    """[C] float64."""
    strength: float
    nll: float
    """Mean nats a ground truth, on the training pairs and without the regulariser. nan: no pairs."""
    iterations: int
    converged: bool
    """False: L-BFGS stopped at its limit of iterations, or could not go lower."""


class Validated(NamedTuple):
    """How well a strength predicts the ground truths of left-out conversations."""

    strength: float
    nll: float
    """Mean nats a ground truth."""
    se: float
    """Its standard error over users (clusters)."""
    converged: bool = True
    """Whether the fits of all folds converged."""


class CrossValidation(NamedTuple):
    best: float
    """The strength with the lowest nll; of equals the largest."""
    table: list[Validated]
    """In the order of the strengths as given."""


class Wanted(NamedTuple):
    """The ground truths of M conversations that have some."""

    rows: np.ndarray
    """[M] rows of the scores."""
    counts: Any
    """[M, C] sparse.csr_array: how often each item is a ground truth."""

    @classmethod
    def of(cls, rows: np.ndarray, truths: Sequence[np.ndarray], columns: int) -> "Wanted":
        """rows: of all conversations. truths: places of the ground truths of each; may be empty."""
        places = np.concatenate([np.empty(0, dtype=np.int64), *truths])
        starts = np.cumsum([0, *map(len, truths)])
        counts = sparse.csr_array((np.ones(len(places)), places, starts), shape=(len(truths), columns))
        counts.sum_duplicates()
        return cls(rows, counts).only(np.diff(counts.indptr) > 0)

    def only(self, which: np.ndarray) -> "Wanted":
        """which: [M] bool."""
        return Wanted(self.rows[which], self.counts[np.flatnonzero(which)])

    def blocks(self) -> Iterator["Wanted"]:
        size = max(1, _AT_A_TIME // max(1, self.counts.shape[1]))
        return (
            Wanted(self.rows[b.start : b.stop], self.counts[b.start : b.stop]) for b in blocks(len(self.rows), size)
        )


def fit_adjust(
    store: ScoreStore, rows: range, truths: Sequence[np.ndarray], strength: float, each: Blocks = LOOP
) -> Adjustment:
    """Fit w and b to the ground truths of the conversations `rows`, by L-BFGS from w = 1, b = 0.

    Each evaluation is one pass over the scores; sums over conversations are float64.

    Args:
        store: the scores.
        rows: conversations to fit to.
        truths: places in the catalog of the ground truths of each of `rows`; may be empty. Without any, w = 1 and b = 0.
        strength: weight of the regulariser.
        each: how blocks of conversations are passed over.
    """
    return _fit(_Pairs(store.read, Wanted.of(np.asarray(rows), truths, store.columns), each), strength)


def cross_validate(
    store: ScoreStore,
    rows: range,
    truths: Sequence[np.ndarray],
    strengths: Sequence[float],
    *,
    folds: int,
    clusters: Sequence[str],
    cv_size: int,
    seed: int,
    each: Blocks = LOOP,
) -> CrossValidation:
    """Compare strengths by cross-validation on about `cv_size` of the conversations, whose scores are held in memory.

    clusters: the user of each conversation. A cluster is never split between folds: no user is predicted from the same
    user's other conversations. Raises UserError if fewer than `folds` clusters have ground truths in the catalog.
    """
    useful = np.flatnonzero([len(wanted) > 0 for wanted in truths])
    names, cluster = np.unique(np.asarray(clusters)[useful], return_inverse=True)
    if len(names) < folds:
        raise UserError(
            f"distill.adjust.folds={folds} needs as many users with ground truths in the catalog, and the training "
            f"conversations have {len(names)}. Give distill.adjust.strength=0.01 (the paper's), or more conversations."
        )
    place = np.random.default_rng(seed).permutation(len(names))  # of each cluster in the draw
    size = np.bincount(cluster)[np.argsort(place)]  # in the order of the draw
    drawn = max(folds, int(np.searchsorted(np.cumsum(size), cv_size, side="right")))
    kept = place[cluster] < drawn
    chosen, cluster = useful[kept], cluster[kept]
    fold = place[cluster] % folds
    scores = store.read(rows.start + chosen)  # [M, C]
    wanted = Wanted.of(np.arange(len(chosen)), [truths[at] for at in chosen], store.columns)
    nll = {strength: np.zeros(len(chosen)) for strength in strengths}
    converged = dict.fromkeys(strengths, True)
    with bar("Adjust, strengths", folds) as progress:
        for number, found in enumerate(each.map(_left_out, range(folds), scores, wanted, fold, strengths)):
            for strength, (lost, fit_converged) in found.items():
                nll[strength][fold == number] = lost
                converged[strength] &= fit_converged
            progress.advance()
    number = wanted.counts.sum(axis=1)
    table = [Validated(s, *_mean(nll[s], number, cluster), converged[s]) for s in strengths]
    return CrossValidation(min(table, key=lambda row: (row.nll, -row.strength)).strength, table)


def _left_out(
    number: int, scores: np.ndarray, wanted: Wanted, fold: np.ndarray, strengths: Sequence[float]
) -> dict[float, tuple[np.ndarray, bool]]:
    """Fit each strength without the conversations of a fold.

    Return -log softmax of the fold's ground truths, [M in the fold], and whether the fit converged.
    """
    kept = _Pairs(scores.__getitem__, wanted.only(fold != number))
    left_out = _Pairs(scores.__getitem__, wanted.only(fold == number))
    found, fitted = {}, None
    for strength in sorted(set(strengths), reverse=True):  # a weaker one starts from the solution of the stronger one
        fitted = _fit(kept, strength, fitted)
        found[strength] = left_out.nll(fitted.w, fitted.b), fitted.converged
    return found


def _fit(pairs: "_Pairs", strength: float, start: Adjustment | None = None) -> Adjustment:
    columns, total = pairs.wanted.counts.shape[1], pairs.wanted.counts.sum()
    unchanged = np.concatenate([np.ones(columns), np.zeros(columns)])
    if not total:
        return Adjustment(unchanged[:columns], unchanged[columns:], strength, float("nan"), 0, True)

    # The curvature along a variable differs by thousands between frequent and rare items: with variables scaled by it, L-BFGS
    # needs a third of the steps.
    scale = np.sqrt(pairs.curvature() + 2 * strength)
    first = unchanged if start is None else np.concatenate([start.w, start.b])

    def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
        """Return value and gradient at first + y / scale, divided by the number of pairs: tolerances then fit any dataset."""
        x = first + y / scale
        slopes = (torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64))
        nll = pairs.nll(x[:columns], x[columns:], slopes).sum()
        away = x - unchanged
        gradient = torch.cat(slopes).numpy() + 2 * strength * away
        return float((nll + strength * away @ away) / total), gradient / (scale * total)

    limits = {"maxiter": _MOST_ITERATIONS, "maxfun": 2 * _MOST_ITERATIONS, "ftol": 1e-11, "gtol": 1e-6, "maxcor": 20}
    found = minimize(objective, np.zeros(2 * columns), jac=True, method="L-BFGS-B", options=limits)
    best = first + found.x / scale
    nll = float(found.fun - strength * ((best - unchanged) ** 2).sum() / total)
    return Adjustment(best[:columns], best[columns:], strength, nll, int(found.nit), bool(found.success))


class _Pairs:
    """The pairs of a conversation and a ground truth, whose scores are passed over block by block."""

    def __init__(self, read: Read, wanted: Wanted, each: Blocks = LOOP) -> None:
        self.wanted = wanted
        self._each = each
        self._blocks = each.keep(lambda: ((read(block.rows), block.counts) for block in wanted.blocks()))

    def curvature(self) -> np.ndarray:
        """Approximate the second derivatives of the sum by [w, b] at its minimum: there sum_x m_x p_xj is about the number of
        pairs with item j, and sum_x m_x p_xj s_xj^2 that number times the mean square of the item's scores."""
        number = self.wanted.counts.sum(axis=0) + 1.0
        squares = sum(self._each.map(_squares, self._blocks))
        return np.concatenate([number * squares / len(self.wanted.rows), number])

    def nll(
        self, w: np.ndarray, b: np.ndarray, gradient: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> np.ndarray:
        """Return -log softmax(w * s + b) of each conversation, summed over its ground truths, [M] float64.

        Adds the derivatives of its sum by w and b to `gradient`, [C] float64 each: with m_x ground truths of conversation x,

            d/dz = m_x softmax(z) - (1 at each of them),  d/dw = sum_x s_x d/dz,  d/db = sum_x d/dz
        """
        dtype = torch.float64 if len(self.wanted.rows) * len(w) <= _PRECISE else torch.float32
        found: list[np.ndarray] = [np.empty(0)]
        for lost, slopes in self._each.map(_block_nll, self._blocks, w, b, dtype, gradient is not None):
            found.append(lost)
            if gradient is not None:
                for total, part in zip(gradient, slopes, strict=True):
                    total.add_(torch.tensor(part))
        return np.concatenate(found)


def _squares(block: tuple[np.ndarray, Any]) -> np.ndarray:
    return np.square(block[0]).sum(axis=0, dtype=np.float64)


def _block_nll(
    block: tuple[np.ndarray, Any], w: np.ndarray, b: np.ndarray, dtype: torch.dtype, with_gradient: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return `_Pairs.nll` of a block, [B], and the sums of its derivatives by w and b, [C] float64 each (or none).

    block: scores [B, C] float32, and the counts of ground truths [B, C], sparse.
    """
    counts = block[1]
    with warnings.catch_warnings():  # of arrays in Ray's store, which are read-only: nothing writes to them here
        warnings.simplefilter("ignore", UserWarning)
        scale, shift, scores = (torch.from_numpy(value).to(dtype) for value in (w, b, block[0]))
        times = torch.from_numpy(counts.data)
    row, place = counts.nonzero()
    z = torch.addcmul(shift, scores, scale)  # [B, C]
    log_sum = z.logsumexp(dim=1, keepdim=True)  # [B, 1]
    lost = (log_sum[row, 0].double() - z[row, place].double()) * times
    found = np.bincount(row, weights=lost.numpy(), minlength=len(scores))
    if not with_gradient:
        return found, []
    slope = z.sub_(log_sum).exp_().mul_(torch.from_numpy(counts.sum(axis=1))[:, None])
    slope[row, place] -= times.to(dtype)  # d/dz
    by_b = slope.sum(dim=0, dtype=torch.float64)
    return found, [slope.mul_(scores).sum(dim=0, dtype=torch.float64).numpy(), by_b.numpy()]


def _mean(nll: np.ndarray, counts: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Return the mean over pairs and its standard error: a ratio of sums over G clusters, linearised,

    se = sqrt(G / (G - 1) sum_g (nll_g - mean count_g)^2) / sum_g count_g
    """
    _, cluster = np.unique(cluster, return_inverse=True)
    lost, number = np.bincount(cluster, weights=nll), np.bincount(cluster, weights=counts)
    mean = lost.sum() / number.sum()
    size = len(number)
    return float(mean), float(np.sqrt(size / (size - 1) * ((lost - mean * number) ** 2).sum()) / number.sum())
