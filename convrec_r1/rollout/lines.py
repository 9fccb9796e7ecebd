"""Lines in the tokens of a completion: where it is stopped at line N, and which tokens are thoughts and hold no line."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from convrec_r1.lists import thoughts
from convrec_r1.policy.policy import Policy
from convrec_r1.rollout.base import Completion


class LineCounter:
    """Counts the closed lines of one completion, token by token, by the rule of `rl.segment_ranks`.

    Thoughts hold no lines, where a single token begins and ends them.
    """

    def __init__(
        self,
        newline: Sequence[bool],
        blank: Sequence[bool],
        opens: Sequence[bool] | None = None,
        thought: Sequence[int] | None = None,
    ) -> None:
        """Tables as in `policy.tokens.TokenTables`, [V]. None: no token is of this kind."""
        self.newline, self.blank, self.opens, self.thought = newline, blank, opens, thought
        self.count = 0
        self.text = False  # whether the open line has any
        self.thinking = False

    def add(self, token: int) -> int:
        """Take in the next token. Return the number of closed lines."""
        mark = self.thought[token] if self.thought is not None else 0
        if mark < 0 and not self.thinking:  # the prompt began the thoughts
            self.count, self.text = 0, False
        if mark:
            self.thinking = mark > 0
        if mark or self.thinking:
            return self.count
        self.text = self.text or not self.blank[token]
        if self.newline[token] and self.text:
            self.count, self.text = self.count + 1, False
        self.text = self.text or (self.opens is not None and self.opens[token])
        return self.count


class LineCounters:
    """`LineCounter` for many completions at a time, on the device of their tokens."""

    def __init__(self, policy: Policy, rows: int) -> None:
        self.newline, self.blank, self.opens = policy.newline, policy.blank, policy.opens
        self.thought = policy.thought if bool(policy.thought.any()) else None
        device = policy.newline.device
        self.count = torch.zeros(rows, dtype=torch.long, device=device)
        self.text, self.thinking = (torch.zeros(rows, dtype=torch.bool, device=device) for _ in range(2))

    def add(self, tokens: Tensor) -> Tensor:
        """Take in the next token of each row, LongTensor [b]. Return the numbers of closed lines, LongTensor [b]."""
        text = self.text | ~self.blank[tokens]
        closes = self.newline[tokens] & text
        text = (text ^ closes) | self.opens[tokens]
        if self.thought is not None:
            mark = self.thought[tokens]
            begun = (mark < 0) & ~self.thinking  # by the prompt
            self.count, kept = self.count.masked_fill(begun, 0), self.text & ~begun
            self.thinking = torch.where(mark == 0, self.thinking, mark > 0)
            skipped = (mark != 0) | self.thinking
            text, closes = torch.where(skipped, kept, text), closes & ~skipped
        self.text, self.count = text, self.count + closes
        return self.count

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of an index."""
        self.count, self.text, self.thinking = self.count[rows], self.text[rows], self.thinking[rows]


class LineCutter:
    """Cuts completions after the token that closes line `max_lines`."""

    def __init__(
        self, newline: Tensor, blank: Tensor, opens: Tensor | None = None, thought: Tensor | None = None
    ) -> None:
        """Tables as in `policy.tokens.TokenTables`, [V]."""
        lists = [None if table is None else table.tolist() for table in (opens, thought)]
        self.counter: Callable[[], LineCounter] = partial(LineCounter, newline.tolist(), blank.tolist(), *lists)

    @classmethod
    def of(cls, policy: Policy) -> "LineCutter":
        return cls(policy.newline, policy.blank, policy.opens, policy.thought)

    def __call__(self, completion: Completion, max_lines: int | None) -> Completion:
        """Return the completion up to there; unchanged if fewer lines are closed or `max_lines` is None."""
        length = self.length(completion.ids, max_lines)
        if length is None:
            return completion
        return Completion(completion.ids[:length], completion.logprobs[:length], "stop")

    def length(self, ids: np.ndarray, max_lines: int | None) -> int | None:
        """Return the number of tokens up to the one that closes line `max_lines`. None: it is not closed."""
        if max_lines is None:
            return None
        counter = self.counter()
        return next((place for place, token in enumerate(ids, start=1) if counter.add(token) == max_lines), None)


def thought_tokens(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Return the places of the tokens in a completion that write thoughts (`lists.thoughts`).

    A token that writes text of the list besides is not among them.

    Args:
        ids: tokens of the completion.
        decode: tokens -> text.
    """
    text = decode(ids)
    found: list[int] = []
    for start, end in thoughts(text):
        # By the text, not its length: a part of a character's bytes is written as one character, too.
        first, last = (
            bisect_left(range(len(ids)), True, key=lambda k: decode(ids[:k]).startswith(text[:at]))
            for at in (start, end)
        )
        rest = text[end : len(decode(ids[:last]))]
        closes = "\n" in rest and text[:start].rpartition("\n")[2].strip()  # the newline of a line before the thoughts
        found += range(first, last - bool(rest.strip() or closes))
    return found
