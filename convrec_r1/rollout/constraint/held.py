"""The lists of a batch while they are written under the catalog constraint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convrec_r1.rollout.constraint.catalog import Constraint
from convrec_r1.rollout.constraint.lines import Opening


class Choices:
    """The tokens that each of b lists may take next."""

    def __init__(self, ids: Tensor, counts: Tensor) -> None:
        """
        Args:
            ids: LongTensor [b, W]. After the last of a row any ids stand.
            counts: LongTensor [b], at least 1: tokens of each row.
        """
        self.ids, self.counts = ids, counts
        self._none = torch.arange(ids.shape[1], device=ids.device) >= counts[:, None]

    def of(self, logits: Tensor) -> Tensor:
        """Return the logits of these tokens, float32 [b, W], -inf after the last. logits: [b, V]."""
        return logits.gather(1, self.ids).float().masked_fill_(self._none, -torch.inf)

    def tokens(self, places: Tensor) -> Tensor:
        """Return the tokens at places in the rows, LongTensor [b, 1]. places: LongTensor [b, 1].

        Without finite logits a place may be any. Its token is one of the row's even then.
        """
        return self.ids.gather(1, torch.minimum(places, self.counts[:, None] - 1))


class HeldLists:
    """The states of b lists, on the CPU. The choices they leave are on the device of the logits."""

    def __init__(self, constraint: Constraint, openings: Sequence[Opening], device: torch.device) -> None:
        """openings: [b], what each list may hold."""
        self.states = [constraint.state(opening) for opening in openings]
        self.device = device
        self._eos = np.array([constraint.lines.vocabulary.eos], dtype=np.int32)

    def choices(self) -> Choices:
        """Return what each list may take next. A list that has ended takes EOS."""
        sets = [self._eos if state.ended else state.allowed().tokens() for state in self.states]
        counts = [len(ids) for ids in sets]
        table = np.zeros((len(sets), max(counts)), dtype=np.int32)
        for row, ids in zip(table, sets, strict=True):
            row[: len(ids)] = ids
        return Choices(torch.from_numpy(table).to(self.device).long(), torch.tensor(counts, device=self.device))

    def advance(self, tokens: Tensor) -> None:
        """Take in the next token of each list, LongTensor [b]."""
        for state, token in zip(self.states, tokens.tolist(), strict=True):
            if not state.ended:
                state.advance(token)

    def keep(self, rows: Tensor) -> None:
        """Keep the lists of an index."""
        self.states = [self.states[row] for row in rows.tolist()]
