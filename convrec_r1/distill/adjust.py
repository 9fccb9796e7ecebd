"""Adjust: correct the scores of each item by how often users want it (design section 8).

    s_final = w * s + b,   w, b in R^C shared by all conversations

minimise  - sum over (conversation x, ground truth t) of log softmax(w * s_x + b)_t  +  strength (|w - 1|^2 + |b|^2)

A sum over all pairs, not their mean: the regulariser is a normal prior with variance 1 / (2 strength) around w = 1, b = 0,
and matters less the more pairs there are. An item that is never wanted is lowered by all conversations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from convrec_r1.base.errors import UserError
from convrec_r1.base.progress import bar
from convrec_r1.distill.scores import ScoreStore

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


@dataclass(frozen=True)
class Validated:
    """How well a strength predicts the ground truths of left-out conversations."""

    strength: float
    nll: float
    """Mean nats a ground truth."""
    se: float
    """Its standard error over users (clusters)."""


@dataclass(frozen=True)
class CrossValidation:
    best: float
    """The strength with the lowest nll; of equals the largest."""
    table: list[Validated]
    """In the order of the strengths as given."""


def fit_adjust(store: ScoreStore, rows: range, truths: Sequence[np.ndarray], strength: float) -> Adjustment:
    """Fit w and b to the ground truths of the conversations `rows`, by L-BFGS from w = 1, b = 0.

    truths: places in the catalog of the ground truths of each of `rows`; may be empty. Without any, w = 1 and b = 0.
    Each evaluation is one pass over the scores; sums over conversations are float64.
    """
    pairs = _Pairs.of(np.arange(rows.start, rows.stop), truths)
    return _fit(store.read, pairs, store.columns, strength)


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
    pairs = _Pairs.of(np.arange(len(chosen)), [truths[at] for at in chosen])
    nll = {strength: np.zeros(len(chosen)) for strength in strengths}
    with bar("Adjust, strengths", folds * len(nll)) as progress:
        for number in range(folds):
            start = None
            for strength in sorted(nll, reverse=True):  # a weaker one starts from the solution of the stronger one
                fitted = _fit(scores.__getitem__, pairs.only(fold != number), store.columns, strength, start)
                start = fitted
                left_out = pairs.only(fold == number)
                nll[strength][fold == number] = _nll(scores.__getitem__, left_out, fitted.w, fitted.b)
                progress.advance()
    table = [Validated(strength, *_mean(nll[strength], pairs.counts, cluster)) for strength in strengths]
    best = min(table, key=lambda row: (row.nll, -row.strength))
    return CrossValidation(best.strength, table)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Conversations with ground truths: rows [M], and the places of the ground truths of each."""

    rows: np.ndarray
    wanted: list[np.ndarray]

    @classmethod
    def of(cls, rows: np.ndarray, truths: Sequence[np.ndarray]) -> "_Pairs":
        kept = [at for at, wanted in enumerate(truths) if len(wanted)]
        return cls(rows[kept], [truths[at] for at in kept])

    def only(self, which: np.ndarray) -> "_Pairs":
        return _Pairs(self.rows[which], [self.wanted[at] for at in np.flatnonzero(which)])

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(wanted) for wanted in self.wanted], dtype=np.int64)

    def blocks(self, columns: int):
        """Yield blocks of (rows, row within the block of each pair, place of each pair)."""
        size = max(1, _AT_A_TIME // max(1, columns))
        for start in range(0, len(self.rows), size):
            wanted = self.wanted[start : start + size]
            row = np.repeat(np.arange(len(wanted)), [len(places) for places in wanted])
            yield self.rows[start : start + size], row, np.concatenate(wanted)


def _fit(read: Read, pairs: _Pairs, columns: int, strength: float, start: Adjustment | None = None) -> Adjustment:
    total = int(pairs.counts.sum())
    unchanged = np.concatenate([np.ones(columns), np.zeros(columns)])
    if not total:
        return Adjustment(unchanged[:columns], unchanged[columns:], strength, float("nan"), 0, True)

    # The curvature along a variable differs by thousands between frequent and rare items: with variables scaled by it, L-BFGS
    # needs a third of the steps.
    scale = np.sqrt(_curvature(read, pairs, columns) + 2 * strength)
    first = unchanged if start is None else np.concatenate([start.w, start.b])

    def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
        """Return value and gradient at first + y / scale, divided by the number of pairs: tolerances then fit any dataset."""
        x = first + y / scale
        slopes = (torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64))
        nll = _nll(read, pairs, x[:columns], x[columns:], slopes).sum()
        away = x - unchanged
        gradient = torch.cat(slopes).numpy() + 2 * strength * away
        return float((nll + strength * away @ away) / total), gradient / (scale * total)

    limits = {"maxiter": _MOST_ITERATIONS, "maxfun": 2 * _MOST_ITERATIONS, "ftol": 1e-11, "gtol": 1e-6, "maxcor": 20}
    found = minimize(objective, np.zeros(2 * columns), jac=True, method="L-BFGS-B", options=limits)
    best = first + found.x / scale
    w, b = best[:columns], best[columns:]
    nll = float(_nll(read, pairs, w, b).sum()) / total
    return Adjustment(w, b, strength, nll, int(found.nit), bool(found.success))


def _curvature(read: Read, pairs: _Pairs, columns: int) -> np.ndarray:
    """Approximate the second derivatives of the sum by [w, b] at its minimum: there sum_x m_x p_xj is about the number of
    pairs with item j, and sum_x m_x p_xj s_xj^2 that number times the mean square of the item's scores."""
    wanted = np.bincount(np.concatenate(pairs.wanted), minlength=columns) + 1.0
    squares = np.zeros(columns)
    for rows, _, _ in pairs.blocks(columns):
        scores = torch.from_numpy(read(rows))
        squares += (scores * scores).sum(dim=0, dtype=torch.float64).numpy()
    return np.concatenate([wanted * squares / len(pairs.rows), wanted])


def _nll(
    read: Read,
    pairs: _Pairs,
    w: np.ndarray,
    b: np.ndarray,
    gradient: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> np.ndarray:
    """Return -log softmax(w * s + b) of each conversation, summed over its ground truths, [M] float64.

    Adds the derivatives of its sum by w and b to `gradient`, [C] float64 each: with m_x ground truths of conversation x,

        d/dz = m_x softmax(z) - (1 at each of them),  d/dw = sum_x s_x d/dz,  d/db = sum_x d/dz
    """
    dtype = torch.float64 if len(pairs.rows) * len(w) <= _PRECISE else torch.float32
    scale, shift = torch.from_numpy(w).to(dtype), torch.from_numpy(b).to(dtype)
    found = [np.empty(0)]
    for rows, row, place in pairs.blocks(len(w)):
        scores = torch.from_numpy(read(rows)).to(dtype)  # [B, C]
        row, place = torch.from_numpy(row), torch.from_numpy(place)
        z = torch.addcmul(shift, scores, scale)
        log_sum = z.logsumexp(dim=1, keepdim=True)  # [B, 1]
        lost = log_sum[row, 0].double() - z[row, place].double()
        found.append(torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row, lost).numpy())
        if gradient is not None:
            slope = z.sub_(log_sum).exp_().mul_(torch.bincount(row, minlength=len(rows))[:, None])
            slope.index_put_((row, place), torch.tensor(-1.0, dtype=dtype), accumulate=True)  # d/dz
            gradient[1].add_(slope.sum(dim=0, dtype=torch.float64))
            gradient[0].add_(slope.mul_(scores).sum(dim=0, dtype=torch.float64))
    return np.concatenate(found)


def _mean(nll: np.ndarray, counts: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Return the mean over pairs and its standard error: a ratio of sums over G clusters, linearised,

    se = sqrt(G / (G - 1) sum_g (nll_g - mean count_g)^2) / sum_g count_g
    """
    _, cluster = np.unique(cluster, return_inverse=True)
    lost, number = np.bincount(cluster, weights=nll), np.bincount(cluster, weights=counts)
    mean = lost.sum() / number.sum()
    size = len(number)
    return float(mean), float(np.sqrt(size / (size - 1) * ((lost - mean * number) ** 2).sum()) / number.sum())
