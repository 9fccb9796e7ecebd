"""Keys and values of prompts and of the completions that continue them, and the attention layouts that write and read them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from convrec_r1.policy.attention import grouped

SHORT = (torch.bfloat16, torch.float16)
_COLUMNS = 64
"""Tokens for which completions have room at first. It doubles when they need more."""


class Cache:
    """Keys and values of P prompts, each once, and of the completions that continue them, up to W for each prompt.

    A completion is a slot, p * W + w. Prompts are padded on the right to S tokens. All completions have as many tokens.
    """

    def __init__(self, lengths: Sequence[int], width: int, most: int, device: torch.device) -> None:
        """lengths: tokens of each prompt. width: W. most: upper limit of the tokens of a completion."""
        self.lengths = torch.tensor(lengths, device=device)
        self.prompts, self.width, self.most = len(lengths), width, most
        self.longest = max(lengths)
        self.made = 0  # tokens of each completion
        self.slots: Tensor | None = None  # of the rows that are decoded, LongTensor [b]. None: they are all the slots
        self.prompt: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: keys and values [P, K, S, D]
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: keys and values [P, K, W, columns, D]
        self.hidden = self._hidden()

    def bytes_of_a_token(self) -> int:
        return sum(2 * k.shape[1] * k.shape[3] * k.element_size() for k, _ in self.prompt.values())

    def keep(self, prompts: Tensor, slots: Tensor, width: int, rows: Tensor | None) -> None:
        """Move completions that are left together.

        Args:
            prompts: those that are left, LongTensor [P'].
            slots: the old slot of each new one, LongTensor [P' * width]. Slots without a completion have any.
            width: new W.
            rows: new slots of the rows, LongTensor [b]. None: they are all the slots.
        """
        if len(prompts) < self.prompts:
            self.lengths = self.lengths[prompts]
            self.longest = int(self.lengths.max())
            for layer, pair in self.prompt.items():
                self.prompt[layer] = _each(pair, lambda t: t[prompts, :, : self.longest].contiguous())
        for layer, pair in self.own.items():
            heads = pair[0].shape[1]
            p, w = slots.view(len(prompts), 1, width) // self.width, slots.view(len(prompts), 1, width) % self.width
            index = (p * heads + torch.arange(heads, device=slots.device)[:, None]) * self.width + w  # [P', K, W']
            self.own[layer] = _each(pair, lambda t, index=index: self._moved(t, index))
        self.prompts, self.width, self.slots = len(prompts), width, rows
        self.hidden = self._hidden()

    def room(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffers of the completions' keys and values with room for one more token. like: keys [P, K, S, D]."""
        pair = self.own.get(layer)
        if pair is None:
            shape = self.prompts, like.shape[1], self.width, min(self.most, _COLUMNS), like.shape[3]
            pair = self.own[layer] = like.new_zeros(shape), like.new_zeros(shape)
        elif self.made == pair[0].shape[3]:
            columns = min(self.most, 2 * self.made)
            pair = self.own[layer] = _each(pair, lambda t: self._wider(t, columns))
        return pair

    def _hidden(self) -> Tensor | None:
        """Return what is added to the scores of the prompts' tokens, [P, 1, S]: -inf on padding. None: there is none."""
        if bool((self.lengths == self.longest).all()):
            return None
        padding = torch.arange(self.longest, device=self.lengths.device) >= self.lengths[:, None, None]
        return torch.zeros(padding.shape, device=padding.device).masked_fill_(padding, -math.inf)

    def _moved(self, old: Tensor, index: Tensor) -> Tensor:
        new = old.new_zeros(*index.shape, *old.shape[3:])
        new[..., : self.made, :] = old.flatten(0, 2)[:, : self.made][index]
        return new

    def _wider(self, old: Tensor, columns: int) -> Tensor:
        new = old.new_zeros(*old.shape[:3], columns, old.shape[4])
        new[..., : self.made, :] = old
        return new


class Prefill:
    """Layout of whole prompts in one row [1, N], one after the other. Writes their keys and values to the cache."""

    def __init__(self, cache: Cache, lengths: Sequence[int], first: int) -> None:
        """first: index of the first prompt in the cache. lengths: tokens of the prompts from there."""
        device = cache.lengths.device
        self.cache, self.first, self.count, self.width = cache, first, len(lengths), max(lengths)
        self.longest = cache.longest + cache.most
        each = torch.tensor(lengths, device=device)
        self.last = each.cumsum(0) - 1  # places of the prompts' last tokens, [p]
        owner = torch.arange(self.count, device=device).repeat_interleave(each)
        self.positions = torch.arange(len(owner), device=device) - (self.last + 1 - each)[owner]  # [N]
        self.places = owner * self.width + self.positions  # in [p, width]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        query, key, value = (self._padded(t) for t in (query, key, value))
        like = key.to(_kept(query))
        if layer not in self.cache.prompt:
            shape = self.cache.prompts, key.shape[1], self.cache.longest, key.shape[3]
            self.cache.prompt[layer] = like.new_zeros(shape), like.new_zeros(shape)
        for kept, new in zip(self.cache.prompt[layer], (like, value), strict=True):
            kept[self.first : self.first + self.count, :, : self.width] = new
        # No token sees the padding after it.
        output = scaled_dot_product_attention(
            query, grouped(query, key), grouped(query, value), is_causal=True, scale=scale
        )
        return output.transpose(1, 2).flatten(0, 1)[self.places][None]  # [1, N, H, D]

    def _padded(self, packed: Tensor) -> Tensor:
        """Spread [1, heads, N, D] to [p, heads, width, D]."""
        heads, _, size = packed.shape[1:]
        padded = packed.new_zeros(self.count * self.width, heads, size)
        padded[self.places] = packed[0].transpose(0, 1)
        return padded.view(self.count, self.width, heads, size).transpose(1, 2)


class Decode:
    """Layout of one more token for each row [b, 1]: it attends to its prompt, shared by its rows, and to its own tokens."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.longest = 0  # the prefill has looked at it

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        device = query.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # the cache has the dtype of the arithmetic already
                return self._attend(layer, query, key, value, scale)
        return self._attend(layer, query, key, value, scale)

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        cache = self.cache
        prompt_k, prompt_v = cache.prompt[layer]
        own_k, own_v = cache.room(layer, prompt_k)
        p, kv, longest, size = prompt_k.shape
        w, t = cache.width, cache.made + 1
        times = query.shape[1] // kv
        rows = (x.transpose(1, 2).to(prompt_k.dtype) for x in (query, key, value))  # [b, 1, heads, D]
        q, k, v = (self._to_slots(x).view(p, w, kv, -1, size).transpose(1, 2) for x in rows)  # [P, K, W, heads / K, D]
        own_k[:, :, :, t - 1] = k[:, :, :, 0]
        own_v[:, :, :, t - 1] = v[:, :, :, 0]
        q = q.contiguous().view(p * kv, w * times, size)
        plain = q.dtype not in SHORT
        if plain:
            q = q * scale
        # Queries of all rows of a prompt against its keys, then of each row against its own.
        columns = own_k.shape[3]
        first = _scores(q, prompt_k.view(p * kv, longest, size))
        if cache.hidden is not None:
            first.view(p, kv, w * times, longest).add_(cache.hidden[:, None])
        second = _scores(q.view(-1, times, size), own_k.view(-1, columns, size)[:, :t])
        scores = torch.cat([first, second.view(p * kv, w * times, t)], -1)
        weights = torch.softmax(scores if plain else scores.mul_(scale), -1).to(q.dtype)
        output = torch.bmm(weights[..., :longest], prompt_v.view(p * kv, longest, size))
        # In place: rows of the same memory, by completion.
        output.view(-1, times, size).baddbmm_(
            weights[..., longest:].view(-1, times, t), own_v.view(-1, columns, size)[:, :t]
        )
        output = output.view(p, kv, w, times, size).transpose(1, 2).reshape(p * w, 1, kv * times, size)
        output = output if cache.slots is None else output[cache.slots]
        return output.to(query.dtype)

    def _to_slots(self, rows: Tensor) -> Tensor:
        if self.cache.slots is None:
            return rows
        slots = rows.new_zeros(self.cache.prompts * self.cache.width, *rows.shape[1:])
        return slots.index_copy_(0, self.cache.slots, rows)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """Return query @ key.T, not in 16 bits: [n, a, D], [n, b, D] -> [n, a, b]."""
    key = key.transpose(1, 2)
    if query.dtype not in SHORT:
        return torch.bmm(query, key)
    if not hasattr(torch.ops.aten.bmm, "dtype"):  # torch before 2.8
        return torch.bmm(query, key).float()
    return torch.bmm(query, key, out_dtype=torch.float32)  # GPUs


def arithmetic(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _kept(query: Tensor) -> torch.dtype:
    """Return the dtype of the cache. CPUs have no products of 16-bit numbers with float32 results: there it is float32."""
    dtype = arithmetic(query)
    return torch.float32 if query.device.type == "cpu" and dtype in SHORT else dtype


def _each(pair: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    key, value = pair
    return change(key), change(value)
