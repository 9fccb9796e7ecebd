"""Lists held to the catalog: the tokens that might have come at each place, and log-probs over these alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Set = tuple[np.ndarray, np.ndarray]
"""Ids of tokens, int [E], and the places in it of those that are left out, int [D]."""
_CHUNK = {"cpu": 256}
"""Places whose logits are in memory at a time, by device."""
_CHUNK_ELSEWHERE = 4096
_SHARED = 256
"""A larger array of ids stands for many places: it is known by its identity."""


@dataclass
class Allowed:
    """A set of tokens for each of some places: the tokens of completions [B, T], or those on the mask [M].

    The sets lie in a pool, equal ones once. Selecting places copies nothing of it.
    """

    pool: Tensor  # LongTensor [L]: ids, one set after the other
    start: Tensor  # LongTensor [...]: where the set of each place begins in the pool
    size: Tensor  # LongTensor [...]: tokens in the set; 0: off the mask
    lost_pool: Tensor  # LongTensor [K]: places, counted within a set, of tokens that are left out of it
    lost_start: Tensor  # LongTensor [...]: where those of each place begin in `lost_pool`
    lost_size: Tensor  # LongTensor [...]: how many there are

    @classmethod
    def collate(cls, lists: Sequence[Iterable[Set]], width: int) -> Allowed:
        """Return the sets of B completions as [B, width]. lists: the set of each token of a completion."""
        shape = len(lists), max(width, 1)
        start, size, lost_start, lost_size = (np.zeros(shape, dtype=np.int64) for _ in range(4))
        ids, lost = _Pool(), _Pool()
        for row, sets in enumerate(lists):
            for column, (tokens, without) in enumerate(sets):
                start[row, column], size[row, column] = ids.add(tokens), len(tokens)
                if len(without):
                    lost_start[row, column], lost_size[row, column] = lost.add(without), len(without)
        tables = ids.array(), start, size, lost.array(), lost_start, lost_size
        return cls(*map(torch.from_numpy, tables))

    def to(self, device: torch.device) -> Allowed:
        return Allowed(*(t.to(device) for t in vars(self).values()))

    def rows(self, index: Tensor, width: int) -> Allowed:
        """Return the sets of the first `width` tokens of some completions."""
        return self._each(lambda table: table[index, :width])

    def at(self, on: Bool[Tensor, "batch tokens"]) -> Allowed:
        """Return the sets of the places on a mask, row by row: [M]."""
        return self._each(lambda table: table[on])

    def _each(self, select: Any) -> Allowed:
        start, size, lost_start, lost_size = map(select, (self.start, self.size, self.lost_start, self.lost_size))
        return Allowed(self.pool, start, size, self.lost_pool, lost_start, lost_size)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the places [M] with more than one token in parts, those with the same set together.

        Yields:
            places, LongTensor [m]; ids that occur at them, ascending, LongTensor [U]; which of them may come at each place,
            BoolTensor [m, U].
        """
        several = (self.size - self.lost_size > 1).nonzero()[:, 0]
        order = several[self.start[several].argsort(stable=True)]
        for places in order.split(_CHUNK.get(order.device.type, _CHUNK_ELSEWHERE)):
            yield places, *self._union(places)

    def _union(self, places: Tensor) -> tuple[Tensor, Tensor]:
        starts, which = self.start[places].unique(return_inverse=True)  # K sets
        sizes = torch.zeros_like(starts).index_copy_(0, which, self.size[places])
        owner, at = _spans(starts, sizes)
        ids, column = self.pool[at].unique(return_inverse=True)
        table = torch.zeros(len(starts), len(ids), dtype=torch.bool, device=ids.device)
        table[owner, column] = True
        mask = table[which]
        row, at = _spans(self.lost_start[places], self.lost_size[places])
        begins = sizes.cumsum(0) - sizes
        mask[row, column[begins[which[row]] + self.lost_pool[at]]] = False
        return ids, mask

    def mask(self, vocabulary: int) -> Tensor:
        """Return which tokens may come at each place, BoolTensor [M, V]."""
        found = torch.zeros(len(self.start), vocabulary, dtype=torch.bool, device=self.pool.device)
        row, at = _spans(self.start, self.size)
        found[row, self.pool[at]] = True
        row, at = _spans(self.lost_start, self.lost_size)
        found[row, self.pool[self.start[row] + self.lost_pool[at]]] = False
        return found


class _Pool:
    """Arrays one after the other, equal ones once."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._starts: dict[Any, int] = {}
        self._total = 0

    def add(self, part: np.ndarray) -> int:
        """Return where an array begins."""
        key = id(part) if len(part) > _SHARED else part.tobytes()
        start = self._starts.get(key)
        if start is None:
            start = self._starts[key] = self._total
            self._parts.append(part)  # kept: its identity stays its own
            self._total += len(part)
        return start

    def array(self) -> np.ndarray:
        return np.concatenate(self._parts).astype(np.int64) if self._parts else np.zeros(0, dtype=np.int64)


def _spans(starts: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spans' elements one after the other: the span of each, and its place. starts, sizes: [R]."""
    owner = torch.arange(len(starts), device=starts.device).repeat_interleave(sizes)
    within = torch.arange(len(owner), device=starts.device) - (sizes.cumsum(0) - sizes)[owner]
    return owner, starts[owner] + within


def allowed_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    temperature: float,
    allowed: Allowed,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return log-probs and entropy as `token_logprobs`, of the distribution over the allowed tokens only.

    Only their logits are computed. The backward pass computes them again instead of storing them. A token that had to come has
    log-prob 0 and entropy 0, exactly. A target that is not allowed has log-prob -inf.

    Args:
        hidden: [M, H], hidden states.
        weight: [V, H], weights of the head.
        targets: LongTensor [M], token ids.
        temperature: divides the logits.
        allowed: the sets of the M places.
    Returns:
        Log-probs and entropy, [M] each, float32 (float64 for hidden states of float64). Only the log-probs have gradients.
    """
    return _AllowedLogProbs.apply(hidden, weight, targets, 1.0 / temperature, allowed)


def masked_logprobs(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"], allowed: Allowed | None
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return log-probs at `targets` and entropy from whole logits, over the allowed tokens. allowed: None: all tokens are."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed.mask(logits.shape[1]), -torch.inf)
    log_p = torch.log_softmax(logits, -1)
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(-1).detach()
    return log_p.gather(1, targets[:, None])[:, 0], entropy


class _AllowedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, allowed: Allowed
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        x = hidden.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        logps, entropy = (torch.zeros(len(x), dtype=exact, device=x.device) for _ in range(2))
        ctx.chunks = list(allowed.chunks())
        for places, ids, mask in ctx.chunks:
            log_p = _log_softmax(x[places], weight[ids], mask, scale)
            column = _columns(ids, targets[places])
            here = ids[column] == targets[places]
            logps[places] = torch.where(here, log_p.gather(1, column[:, None])[:, 0], -torch.inf)
            entropy[places] = -torch.where(mask, log_p.exp() * log_p, 0.0).sum(-1)
        ctx.save_for_backward(x, weight, targets)
        ctx.scale, ctx.hidden_dtype = scale, hidden.dtype
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        grad, _ = grad_outputs  # the entropy is not differentiable
        x, weight, targets = ctx.saved_tensors
        grad_hidden = torch.zeros(x.shape, dtype=grad.dtype, device=x.device) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=grad.dtype, device=x.device) if ctx.needs_input_grad[1] else None
        scaled = grad * ctx.scale
        for places, ids, mask in ctx.chunks:
            part = weight[ids]
            dz = _log_softmax(x[places], part, mask, ctx.scale).exp_().mul_(-scaled[places, None])
            row = torch.arange(len(places), device=x.device)
            dz[row, _columns(ids, targets[places])] += scaled[places]
            dz = dz.to(x.dtype)
            if grad_hidden is not None:
                grad_hidden[places] = (dz @ part.to(x.dtype)).to(grad.dtype)
            if grad_weight is not None:
                grad_weight.index_add_(0, ids, (dz.T @ x[places]).to(grad.dtype))  # no id occurs twice
        grad_hidden = None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def _log_softmax(x: Tensor, weight: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return log-probs of U tokens at m places, -inf where they may not come: [m, U]."""
    z = x @ weight.to(x.dtype).T
    z = z.to(torch.promote_types(z.dtype, torch.float32)).mul_(scale)
    return torch.log_softmax(z.masked_fill_(~mask, -torch.inf), -1)


def _columns(ids: Tensor, targets: Tensor) -> Tensor:
    """Return the place of each target in ascending ids, any if it is not there."""
    return torch.searchsorted(ids, targets).clamp_(max=len(ids) - 1)
