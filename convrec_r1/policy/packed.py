"""One pass over prompts and the completions that share them, without padding: the layout of training and scoring.

The tokens of all prompts, each once, and of all completions stand in one row. Linear layers see only these. Attention is
computed on rectangles, as SDPA needs them: prompts [P, S] among themselves, completions [B, T] on their prompt's keys and
their own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from convrec_r1.policy.attention import grouped
from convrec_r1.policy.batch import TokenBatch


class Packed:
    """A batch as one row of N tokens: those of P prompts, then those of B completions."""

    def __init__(self, batch: TokenBatch) -> None:
        prompts, lists = batch.prompt_mask.bool(), batch.mask.bool()
        starts, lengths = prompts.sum(-1), lists.sum(-1)  # [P], [B]
        (n_prompts, width), (n_lists, list_width) = prompts.shape, lists.shape
        device = lists.device
        column = torch.arange(width, device=device)
        # Padding of prompts moves to the right: no token sees what comes after it, so it needs no mask there.
        self._prompts = Rectangle(column < starts[:, None])
        self._lists = Rectangle(lists)
        self.ids = torch.cat([batch.prompt_ids[prompts], batch.completion_ids[lists]])[None]  # [1, N]
        own = torch.arange(list_width, device=device) + starts[batch.owner, None]  # [B, T]
        self.positions = torch.cat([column.expand(n_prompts, -1)[self._prompts.mask], own[lists]])[None]
        self.longest = int((starts[batch.owner] + lengths).max()) if n_lists else 0
        self.n_prompt_tokens = int(self._prompts.tokens)
        self._owner = batch.owner
        self._last = (starts.cumsum(0) - 1).clamp(min=0)[batch.owner]  # [B]: place of the token before each completion
        # A completion's query sees its prompt's tokens and, of its own, those up to itself.
        seen = (column < starts[:, None])[batch.owner, None, None].expand(-1, 1, list_width, -1)  # [B, 1, T, S]
        causal = torch.ones(list_width, list_width, dtype=torch.bool, device=device).tril()
        self._seen = torch.cat([seen, causal.expand(n_lists, 1, -1, -1)], -1)  # [B, 1, T, S + T]
        self._bias: Tensor | None = None

    def __len__(self) -> int:
        """Tokens."""
        return self.ids.shape[1]

    def before(self, hidden: Tensor) -> Tensor:
        """Return the hidden states [M, H] that predict each token of the completions, row by row.

        hidden: [1, N, H].
        """
        lists = hidden[0, self.n_prompt_tokens :]
        first = hidden[0].index_select(0, self._last)  # [B, H]
        shifted = torch.cat([first[:, None], self._lists.spread(lists)[:, :-1]], 1)  # [B, T, H]
        return self._lists.gather(shifted)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """See `attention.Layout`."""
        rows = [t[0].transpose(0, 1) for t in (query, key, value)]  # [N, heads, D]
        n = self.n_prompt_tokens
        asked, seen, known = (self._prompts.spread(t[:n]).transpose(1, 2) for t in rows)  # [P, heads, S, D]
        prompts = scaled_dot_product_attention(
            asked, grouped(asked, seen), grouped(asked, known), is_causal=True, scale=scale
        )
        asked, own_keys, own_values = (self._lists.spread(t[n:]).transpose(1, 2) for t in rows)  # [B, heads, T, D]
        keys = torch.cat([seen.index_select(0, self._owner), own_keys], 2)
        values = torch.cat([known.index_select(0, self._owner), own_values], 2)
        lists = scaled_dot_product_attention(
            asked, grouped(asked, keys), grouped(asked, values), attn_mask=self._mask(asked), scale=scale
        )
        parts = self._prompts.gather(prompts.transpose(1, 2)), self._lists.gather(lists.transpose(1, 2))
        return torch.cat(parts)[None]

    def _mask(self, query: Tensor) -> Tensor:
        """Return what is added to the scores. One for all layers: SDPA would make it of the Boolean mask in each."""
        if self._bias is None or self._bias.dtype != query.dtype:
            zeros = torch.zeros(self._seen.shape, dtype=query.dtype, device=query.device)
            self._bias = zeros.masked_fill_(~self._seen, -torch.inf)
        return self._bias


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
