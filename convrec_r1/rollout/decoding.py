"""Decode the completions of a batch token by token: each prompt is read once, whatever the number of its completions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from convrec_r1.policy.attention import Layout, grouped, hidden_states
from convrec_r1.policy.policy import Policy
from convrec_r1.rollout.lines import LineCounters
from convrec_r1.rollout.sampler import SeededSampler

PREFILL_TOKENS = 8192
"""Tokens of prompts in one forward pass, at least one prompt: its activations are larger than its keys and values."""
_SHORT = (torch.bfloat16, torch.float16)
_COLUMNS = 64
"""Tokens for which completions have room at first. It doubles when they need more."""


@dataclass
class Decoded:
    """B completions as tensors on the CPU. `lengths` counts the tokens up to the end; those after it mean nothing."""

    ids: Tensor  # [B, T]
    logprobs: Tensor  # [B, T]
    lengths: Tensor  # [B]
    ended: Tensor  # BoolTensor [B]: by EOS or by lines. False: at the limit


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
        plain = q.dtype not in _SHORT
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
    if query.dtype not in _SHORT:
        return torch.bmm(query, key)
    if not hasattr(torch.ops.aten.bmm, "dtype"):  # torch before 2.8
        return torch.bmm(query, key).float()
    return torch.bmm(query, key, out_dtype=torch.float32)  # GPUs


def _arithmetic(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _kept(query: Tensor) -> torch.dtype:
    """Return the dtype of the cache. CPUs have no products of 16-bit numbers with float32 results: there it is float32."""
    dtype = _arithmetic(query)
    return torch.float32 if query.device.type == "cpu" and dtype in _SHORT else dtype


def _each(pair: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    key, value = pair
    return change(key), change(value)


def decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    sampler: SeededSampler,
    most: int,
    max_lines: int | None = None,
    on_end: Callable[[int], None] | None = None,
) -> Decoded:
    """Sample completions of prompts.

    Args:
        policy: in `inference()`, with whole weights; its attention takes layouts.
        prompts: P lists of token ids.
        owners: the prompt of each completion, [B], ascending.
        sampler: of B rows.
        most: upper limit of the tokens of a completion.
        max_lines: end a completion as soon as this many lines are closed. None: at EOS or at the limit only.
        on_end: called with numbers of completions as they end.
    Raises:
        Unsupported: the model's attention takes no layout.
    """
    device, rows = policy.device, len(owners)
    batch = _Batch(owners, [len(p) for p in prompts], most, device)
    ids = torch.zeros(rows, most, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, most, device=device)
    lengths = torch.full((rows,), most, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    lines = None if max_lines is None else LineCounters(policy, rows)
    check = _check_every(device)
    logits = prefill(policy, batch.cache, prompts)[batch.owner]
    for at in range(most):
        token, logprob = sampler.draw(logits, at)
        ids[batch.rows, at], logprobs[batch.rows, at] = token, logprob
        over = policy.eos[token]
        if lines is not None and max_lines is not None:
            over = over | (lines.add(token) >= max_lines)
        new = over & batch.alive
        lengths[batch.rows] = torch.where(new, at + 1, lengths[batch.rows])
        batch.alive = batch.alive & ~over
        if at + 1 == most:
            break
        if (at + 1) % check == 0:
            left = int(batch.alive.sum())
            if not left:
                break
            # Moving costs about what a token of attention does.
            if left <= 7 / 8 * len(batch.rows):
                kept = batch.compact()
                token = token[kept]
                sampler.keep(kept)
                if lines is not None:
                    lines.keep(kept)
                if on_end:
                    on_end(len(over) - left)
        logits = _next(policy, batch.cache, token, batch.positions)
        batch.positions = batch.positions + 1
    if on_end:
        on_end(len(batch.rows))
    ended = lengths < most
    ended[batch.rows] = ~batch.alive
    return Decoded(*(t.cpu() for t in (ids, logprobs, lengths, ended)))


def _check_every(device: torch.device) -> int:
    """Return the tokens between two looks at which rows have ended. On a GPU the process has to wait for each."""
    return 1 if device.type == "cpu" else 16


class _Batch:
    """Rows that are decoded, with their places in the cache."""

    def __init__(self, owners: Sequence[int], lengths: Sequence[int], most: int, device: torch.device) -> None:
        counts = [0] * len(lengths)
        slots = []
        for owner in owners:
            slots.append((owner, counts[owner]))
            counts[owner] += 1
        width = max(counts)
        self.owner = torch.tensor(owners, device=device)  # [b], the prompt of each row in the cache
        self.rows = torch.arange(len(owners), device=device)  # [b], its place in the batch
        self.alive = torch.ones(len(owners), dtype=torch.bool, device=device)  # [b]
        self.cache = Cache(lengths, width, most, device)
        self.positions = self.cache.lengths[self.owner]  # [b], of the next token
        if len(owners) < len(lengths) * width:
            self.cache.slots = torch.tensor([p * width + w for p, w in slots], device=device)

    def compact(self) -> Tensor:
        """Remove rows that have ended, and prompts without rows. Return the index of the rows that are left."""
        kept = self.alive.nonzero()[:, 0]
        old = kept if self.cache.slots is None else self.cache.slots[kept]
        prompts, owner, counts = self.owner[kept].unique_consecutive(return_inverse=True, return_counts=True)
        width = int(counts.max())
        # Rows of a prompt follow each other: their number within it counts from its first.
        within = torch.arange(len(kept), device=kept.device) - (counts.cumsum(0) - counts)[owner]
        new = owner * width + within
        slots = old.new_zeros(len(prompts) * width).index_copy_(0, new, old)
        self.cache.keep(prompts, slots, width, None if len(new) == len(slots) else new)
        self.owner, self.rows, self.positions = owner, self.rows[kept], self.positions[kept]
        self.alive = torch.ones_like(kept, dtype=torch.bool)
        return kept


def prefill(policy: Policy, cache: Cache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Read prompts into the cache. Return the logits after each, [P, V]."""
    found: list[Tensor] = []
    first = 0
    while first < len(prompts):
        end, tokens = first + 1, len(prompts[first])
        while end < len(prompts) and tokens + len(prompts[end]) <= PREFILL_TOKENS:
            tokens += len(prompts[end])
            end += 1
        part = prompts[first:end]
        layout = Prefill(cache, [len(p) for p in part], first)
        ids = torch.tensor([token for prompt in part for token in prompt], device=policy.device)
        found.append(_logits(policy, ids[None], layout.positions[None], layout, layout.last))
        first = end
    return torch.cat(found)


def _next(policy: Policy, cache: Cache, tokens: Tensor, positions: Tensor) -> Tensor:
    """Take one more token of each row into the cache, LongTensor [b]. Return the logits after it, [b, V]."""
    logits = _logits(policy, tokens[:, None], positions[:, None], Decode(cache), None)
    cache.made += 1
    return logits


def _logits(policy: Policy, ids: Tensor, positions: Tensor, layout: Layout, places: Tensor | None) -> Tensor:
    """Return logits of a row's tokens at `places`, [n, V], or of the only token of each row, [b, V]."""
    lm: Any = policy.causal_lm
    if policy.fused_head:
        hidden = hidden_states(lm, ids, positions, layout)
        return policy.head(hidden[:, 0] if places is None else hidden[0, places])
    mask = torch.zeros(1, 1, 1, 1, device=ids.device)  # the caller's own, as in `hidden_states`
    kept = 1 if places is None else places
    output = lm(
        input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, logits_to_keep=kept, layout=layout
    )
    return output.logits[:, 0] if places is None else output.logits[0]


@torch.no_grad()
def bytes_of_a_token(policy: Policy) -> int | None:
    """Return the bytes of a token's keys and values, if decoding with the cache gives what a plain forward pass gives.

    None: it does not, because the model does more with its tokens than attend as a layout says.

    Raises:
        Unsupported: the model's attention takes no layout.
    """
    vocabulary, device = policy.head_weight.shape[0], policy.device
    ids = torch.arange(1, 10, device=device) * 7 % vocabulary
    prompts, rest = [ids[:5].tolist(), ids[:2].tolist()], ids[5:]
    batch = _Batch([0, 0, 1], [len(p) for p in prompts], len(rest), device)
    found = [prefill(policy, batch.cache, prompts)[batch.owner]]
    for token in rest:
        found.append(_next(policy, batch.cache, token.expand(3), batch.positions))
        batch.positions = batch.positions + 1
    lm: Any = policy.causal_lm
    for row, prompt in ((1, prompts[0]), (2, prompts[1])):
        whole = torch.tensor([[*prompt, *rest.tolist()]], device=device)
        logits = lm(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 :].float()
        shared = torch.stack([each[row] for each in found]).float()
        # As close as two orders of summation come, in the dtype of the arithmetic.
        near = 5e-2 if _arithmetic(policy.head_weight) in _SHORT else 1e-3
        if not torch.allclose(shared, logits, rtol=near, atol=near * float(logits.abs().max()), equal_nan=True):
            return None
    return batch.cache.bytes_of_a_token()
