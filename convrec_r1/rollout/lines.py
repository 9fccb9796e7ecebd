"""Where a completion that is stopped at line N ends: the same place in every engine."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from convrec_r1.rl import segment_ranks
from convrec_r1.rollout.base import Completion


class LineCutter:
    """Cuts completions right behind the token that closes line `max_lines`, as ranks are counted in training."""

    def __init__(self, newline: Tensor, blank: Tensor) -> None:
        self.newline, self.blank = newline.cpu(), blank.cpu()

    def __call__(self, completion: Completion, max_lines: int | None) -> Completion:
        """`completion` up to there; as it is where fewer lines are closed or `max_lines` is None."""
        length = self.length(completion.ids, max_lines)
        if length is None:
            return completion
        return replace(
            completion, ids=completion.ids[:length], logprobs=completion.logprobs[:length], finish_reason="stop"
        )

    def length(self, ids: np.ndarray, max_lines: int | None) -> int | None:
        """Tokens up to the one that closes line `max_lines`; None: it is not closed."""
        if max_lines is None or not len(ids):
            return None
        # A token more shows whether the last one closed its line: it would then stand on the next.
        padded = torch.from_numpy(np.append(ids, ids[-1]))[None]
        ranks = segment_ranks(padded, torch.ones_like(padded), self.newline, self.blank)[0]
        behind = (ranks >= max_lines).nonzero()
        return int(behind[0]) if len(behind) else None
