"""Decode the completions of a batch token by token: each prompt is read once, whatever the number of its completions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convrec_r1.policy.attention import Layout, hidden_states
from convrec_r1.policy.policy import Policy
from convrec_r1.rollout.constraint import HeldLists
from convrec_r1.rollout.layouts import SHORT, Cache, Decode, Prefill, arithmetic
from convrec_r1.rollout.lines import LineCounters
from convrec_r1.rollout.sampler import SeededSampler

PREFILL_TOKENS = 8192
"""Tokens of prompts in one forward pass, at least one prompt: its activations are larger than its keys and values."""


@dataclass
class Decoded:
    """B completions as tensors on the CPU. `lengths` counts the tokens up to the end; those after it mean nothing."""

    ids: Tensor  # [B, T]
    logprobs: Tensor  # [B, T]
    lengths: Tensor  # [B]
    ended: Tensor  # BoolTensor [B]: by EOS or by lines. False: at the limit


@dataclass
class Step:
    """The next token of each row that is decoded."""

    rows: Tensor  # LongTensor [b]: completions, from 0 to before B
    tokens: Tensor  # LongTensor [b]
    logprobs: Tensor  # [b]
    counts: Tensor  # BoolTensor [b]: the token belongs to the completion. False: it had ended before
    ended: Tensor  # BoolTensor [b]: this token ends it


class Decoding:
    """The completions of some prompts while they are sampled: iterate over its steps, then take the `result`.

    In the policy's `inference()`, with whole weights. The policy's attention must take layouts.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        sampler: SeededSampler,
        most: int,
        max_lines: int | None = None,
        on_end: Callable[[int], None] | None = None,
        held: HeldLists | None = None,
    ) -> None:
        """
        Args:
            prompts: P lists of token ids.
            owners: the prompt of each completion, [B], ascending.
            sampler: of B rows.
            most: upper limit of the tokens of a completion.
            max_lines: end a completion as soon as this many lines are closed. None: at EOS or at the limit only.
            on_end: called with numbers of completions as they end.
            held: what the B completions are held to. None: nothing.
        """
        self.policy, self.prompts, self.sampler, self.most = policy, prompts, sampler, most
        self.max_lines, self.on_end, self.held = max_lines, on_end or (lambda _: None), held
        device, rows = policy.device, len(owners)
        self._batch = _Batch(owners, [len(p) for p in prompts], most, device)
        self._ids = torch.zeros(rows, most, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, most, device=device)
        self._lengths = torch.full((rows,), most, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._lines = None if max_lines is None else LineCounters(policy, rows)
        self._check = _check_every(device)

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps.

        Raises:
            Unsupported: before the first step: the model's attention takes no layout.
        """
        batch = self._batch
        logits = prefill(self.policy, batch.cache, self.prompts)[batch.owner]
        for at in range(self.most):
            step = self._draw(logits, at)
            yield step
            if at + 1 == self.most or ((at + 1) % self._check == 0 and not self._some_go_on()):
                break
            logits = _next(self.policy, batch.cache, self._tokens, batch.positions)
            batch.positions = batch.positions + 1
        self.on_end(len(batch.rows))

    def end(self, rows: Sequence[int]) -> None:
        """End completions between two steps: nobody waits for them. They count as cut off."""
        batch = self._batch
        chosen = torch.isin(batch.rows, torch.tensor(list(rows), device=batch.rows.device)) & batch.alive
        self._lengths[batch.rows[chosen]] = batch.cache.made + 1
        batch.alive = batch.alive & ~chosen

    def result(self) -> Decoded:
        """Return the completions, once there are no more steps."""
        return Decoded(*(t.cpu() for t in (self._ids, self._logprobs, self._lengths, self._ended)))

    def _draw(self, logits: Tensor, at: int) -> Step:
        batch, rows = self._batch, self._batch.rows
        token, logprob = self.sampler.draw(logits, at, self.held.choices() if self.held else None)
        if self.held:
            self.held.advance(token)
        self._ids[rows, at], self._logprobs[rows, at] = token, logprob
        over = self.policy.eos[token]
        if self._lines is not None and self.max_lines is not None:
            over = over | (self._lines.add(token) >= self.max_lines)
        before, new = batch.alive, over & batch.alive
        self._lengths[rows] = torch.where(new, at + 1, self._lengths[rows])
        self._ended[rows] = self._ended[rows] | new
        batch.alive = before & ~over
        self._tokens = token
        return Step(rows, token, logprob, before, new)

    def _some_go_on(self) -> bool:
        """Remove rows that have ended where that pays. Return whether any is left."""
        batch, rows = self._batch, len(self._batch.rows)
        left = int(batch.alive.sum())
        # Moving costs about what a token of attention does.
        if 0 < left <= 7 / 8 * rows:
            kept = batch.compact()
            self._tokens = self._tokens[kept]
            for part in (self.sampler, self._lines, self.held):
                if part is not None:
                    part.keep(kept)
            self.on_end(rows - left)
        return left > 0


def decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    sampler: SeededSampler,
    most: int,
    max_lines: int | None = None,
    on_end: Callable[[int], None] | None = None,
    held: HeldLists | None = None,
) -> Decoded:
    """Sample completions of prompts. Arguments as of `Decoding`.

    Raises:
        Unsupported: the model's attention takes no layout.
    """
    decoding = Decoding(policy, prompts, owners, sampler, most, max_lines, on_end, held)
    for _ in decoding:
        pass
    return decoding.result()


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
        near = 5e-2 if arithmetic(policy.head_weight) in SHORT else 1e-3
        if not torch.allclose(
            shared, logits, rtol=near, atol=near * float(logits.nan_to_num().abs().max()), equal_nan=True
        ):
            return None
    return batch.cache.bytes_of_a_token()
