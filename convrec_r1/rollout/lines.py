"""Where a completion ends that is stopped at line N: the same token in every engine."""

import numpy as np
from torch import Tensor

from convrec_r1.rollout.base import Completion


class LineCounter:
    """Counts the closed lines of one completion, token by token, by the rule of `rl.segment_ranks`."""

    def __init__(self, newline: list[bool], blank: list[bool]) -> None:
        """newline, blank: [V]. Whether a token contains a newline, and whether it is white space only."""
        self.newline, self.blank = newline, blank
        self.count = 0
        self.text = False  # whether the open line has any

    def add(self, token: int) -> int:
        """Take in the next token. Return the number of closed lines."""
        self.text = self.text or not self.blank[token]
        if self.newline[token] and self.text:
            self.count, self.text = self.count + 1, False
        return self.count


class LineCutter:
    """Cuts completions after the token that closes line `max_lines`."""

    def __init__(self, newline: Tensor, blank: Tensor) -> None:
        """newline, blank: BoolTensor [V]."""
        self.tables: tuple[list[bool], list[bool]] = newline.tolist(), blank.tolist()

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
        counter = LineCounter(*self.tables)
        return next((place for place, token in enumerate(ids, start=1) if counter.add(token) == max_lines), None)
