"""One pass over prompts and the completions that share them, without padding: the layout of training and scoring.

The tokens of all prompts, each once, and of all completions stand in one row. Linear layers see only these. Attention is
computed on rectangles, as SDPA needs them: prompts [P, S] among themselves, completions [B, T] on their prompt's keys and
their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from convrec_r1.policy.attention import grouped
from convrec_r1.policy.batch import TokenBatch

SHARE, SHORT = 0.7, 16
"""Completions shorter than this share of the longest get a rectangle of their own, unless the longest has few tokens."""


class Packed:
    """A batch as one row of N tokens: those of P prompts, then those of B completions, the longest first.

    Completions of similar length share a rectangle: a single endless list would otherwise make attention over all as wide.
    """

    def __init__(self, batch: TokenBatch) -> None:
        prompts = batch.prompt_mask.bool()
        starts, lengths = prompts.sum(-1), batch.mask.sum(-1)  # [P], [B]
        device = lengths.device
        order = lengths.argsort(descending=True, stable=True)
        lists, owner = batch.mask.bool()[order], batch.owner[order]
        column = torch.arange(prompts.shape[1], device=device)
        # Padding of prompts moves to the right: no token sees what comes after it, so it needs no mask there.
        self._prompts = Rectangle(column < starts[:, None])
        self.n_prompt_tokens = self._prompts.tokens
        self.ids = torch.cat([batch.prompt_ids[prompts], batch.completion_ids[order][lists]])[None]  # [1, N]
        own = torch.arange(lists.shape[1], device=device) + starts[owner, None]  # [B, T]
        self.positions = torch.cat([column.expand(len(prompts), -1)[self._prompts.mask], own[lists]])[None]
        self.longest = int((starts[owner] + lengths[order]).max()) if len(order) else 0
        self._before(starts, lengths, order, batch)
        seen = (column < starts[:, None])[owner]  # [B, S]
        self._lists: list[Lists] = []
        first, sizes = self.n_prompt_tokens, lengths[order].tolist()
        for rows in similar(sizes):
            mask = lists[rows, : max(1, sizes[rows.start])]
            self._lists.append(Lists(mask, owner[rows], seen[rows], first))
            first += self._lists[-1].rectangle.tokens

    def _before(self, starts: Tensor, lengths: Tensor, order: Tensor, batch: TokenBatch) -> None:
        """Find the token before each completion token, among the last tokens of the prompts [B] and the row's completions."""
        self._last = (starts.cumsum(0) - 1).clamp(min=0)[batch.owner]  # [B]: before each completion
        sizes = lengths[order]
        place = torch.empty_like(order).index_copy_(
            0, order, sizes.cumsum(0) - sizes
        )  # [B]: of a completion's first token
        width = batch.mask.shape[1]
        index = place[:, None] + (len(order) - 1) + torch.arange(width, device=place.device)  # [B, T]
        index[:, 0] = torch.arange(len(order), device=place.device)
        self._places = index[batch.mask.bool()]  # [M]

    def __len__(self) -> int:
        """Tokens."""
        return self.ids.shape[1]

    def before(self, hidden: Tensor) -> Tensor:
        """Return the hidden states [M, H] that predict each token of the completions, row by row.

        hidden: [1, N, H].
        """
        first = hidden[0].index_select(0, self._last)  # [B, H]
        return _Gather.apply(torch.cat([first, hidden[0, self.n_prompt_tokens :]]), self._places)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """See `attention.Layout`."""
        query, key, value = (t[0].transpose(0, 1) for t in (query, key, value))  # [N, heads, D]
        n = self.n_prompt_tokens
        asked, seen, known = (
            self._prompts.spread(t[:n]).transpose(1, 2) for t in (query, key, value)
        )  # [P, heads, S, D]
        prompts = scaled_dot_product_attention(
            asked, grouped(asked, seen), grouped(asked, known), is_causal=True, scale=scale
        )
        parts = [self._prompts.gather(prompts.transpose(1, 2))]
        parts += [lists.attend(query, key, value, seen, known, scale=scale) for lists in self._lists]
        return torch.cat(parts)[None]


class Lists:
    """Completions of similar length, which attend to their prompts and to themselves."""

    def __init__(self, mask: Tensor, owner: Tensor, seen: Tensor, first: int) -> None:
        """
        Args:
            mask: BoolTensor [b, T], true on tokens.
            owner: prompt of each, [b].
            seen: BoolTensor [b, S], true on the prompts' tokens.
            first: place of the first token in the row.
        """
        self.rectangle = Rectangle(mask)
        self._own = slice(first, first + self.rectangle.tokens)
        self._owner = owner
        b, width = mask.shape
        # A completion's query sees its prompt's tokens and, of its own, those up to itself.
        causal = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
        self._seen = torch.cat([seen[:, None, None].expand(-1, 1, width, -1), causal.expand(b, 1, -1, -1)], -1)
        self._bias: Tensor | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prompt_keys: Tensor, prompt_values: Tensor, *, scale: float
    ) -> Tensor:
        """Return the attention's output of these completions' tokens, [tokens, H, D].

        Args:
            query, key, value: [N, heads, D], of the whole row.
            prompt_keys, prompt_values: [P, K, S, D].
            scale: of the scores.
        """
        own = (self.rectangle.spread(t[self._own]).transpose(1, 2) for t in (query, key, value))  # [b, heads, T, D]
        asked, own_keys, own_values = own
        keys = torch.cat([prompt_keys.index_select(0, self._owner), own_keys], 2)
        values = torch.cat([prompt_values.index_select(0, self._owner), own_values], 2)
        output = scaled_dot_product_attention(
            asked, grouped(asked, keys), grouped(asked, values), attn_mask=self._mask(asked), scale=scale
        )
        return self.rectangle.gather(output.transpose(1, 2))

    def _mask(self, query: Tensor) -> Tensor:
        """Return what is added to the scores. One for all layers: SDPA would make it of the Boolean mask in each."""
        if self._bias is None or self._bias.dtype != query.dtype:
            zeros = torch.zeros(self._seen.shape, dtype=query.dtype, device=query.device)
            self._bias = zeros.masked_fill_(~self._seen, -torch.inf)
        return self._bias


def similar(lengths: Sequence[int]) -> list[slice]:
    """Cut completions into runs of similar length. lengths: tokens of each, falling."""
    runs: list[slice] = []
    start = 0
    for row, length in enumerate(lengths):
        if max(length, SHORT) < SHARE * lengths[start]:
            runs.append(slice(start, row))
            start = row
    return [*runs, slice(start, len(lengths))] if lengths else []


class Rectangle:
    """Rows of different lengths, padded to [R, W], and the same tokens one after the other."""

    def __init__(self, mask: Tensor) -> None:
        """mask: BoolTensor [R, W], true on tokens."""
        self.mask = mask
        self.places = mask.flatten().nonzero()[:, 0]
        """Place of each token in the flattened rectangle."""
        self.tokens = len(self.places)
        self._full = self.tokens == mask.numel()

    def spread(self, rows: Tensor) -> Tensor:
        """Return [tokens, ...] as [R, W, ...], with zeros as padding."""
        if self._full:
            return rows.reshape(*self.mask.shape, *rows.shape[1:])
        flat = _Spread.apply(rows.flatten(1), self.places, self.mask.numel())
        return flat.view(*self.mask.shape, *rows.shape[1:])

    def gather(self, padded: Tensor) -> Tensor:
        """Return [R, W, ...] as [tokens, ...]."""
        flat = padded.reshape(self.mask.numel(), -1)
        flat = flat if self._full else _Gather.apply(flat, self.places)
        return flat.view(self.tokens, *padded.shape[2:])


class _Spread(torch.autograd.Function):
    """Rows to their places. No place occurs twice, so that the backward pass copies and need not add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros(total, rows.shape[1]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (places,) = ctx.saved_tensors
        return grad_outputs[0].index_select(0, places), None, None


class _Gather(torch.autograd.Function):
    """Rows from their places: the inverse of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.total = len(padded)
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (places,), grad = ctx.saved_tensors, grad_outputs[0]
        return grad.new_zeros(ctx.total, grad.shape[1]).index_copy_(0, places, grad), None
