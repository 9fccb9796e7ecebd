"""A logits processor for vLLM that holds lists to the catalog while they are written (`rollout/constraint`)."""

# vLLM is optional.
# pyright: reportMissingImports=none

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from convrec_r1.rollout.constraint import ListState, Opening, TokenSet
from convrec_r1.rollout.vllm.options import OPENING, read_constraint

_WIDE = 256
"""Tokens of a set from which on its ids stay on the device: lists at one node share the set."""
_KEPT = 256
"""Sets whose ids stay on the device."""


class HoldToCatalog(LogitsProcessor):
    """Allows only the tokens that continue each list within its `extra_args["opening"]`. Other requests are left alone.

    vLLM calls `update_state` before a forward pass and `apply` after it was launched. The work is done in `apply`: on a GPU
    it runs while the GPU computes. One copy to the device carries the indices of the whole batch.
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        self.constraint = read_constraint(Path(vllm_config.model_config.model))
        self.device = device
        self._never = torch.tensor(-torch.inf, device=device)
        self.lists: dict[int, _List] = {}  # by row of the batch
        self._wide: dict[
            int, tuple[np.ndarray, Tensor]
        ] = {}  # by id of the array, which is kept so that the id stays its own

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.lists, batch_update, self._begin)

    def apply(self, logits: Tensor) -> Tensor:
        """logits: float [B, V], changed in place."""
        if self.lists:
            self._hold(logits, {row: one.allowed() for row, one in self.lists.items()})
        return logits

    def _begin(self, params: SamplingParams, _: list[int] | None, output: list[int]) -> "_List | None":
        """Return the list of a request that enters the batch, for the first time or again after it was preempted."""
        packed = (params.extra_args or {}).get(OPENING)
        if packed is None:
            return None
        if self.constraint is None:
            raise ValueError("a request has an opening, and the engine no constraint")
        return _List(self.constraint.state(Opening.unpack(packed)), output)

    def _hold(self, logits: Tensor, allowed: dict[int, TokenSet]) -> None:
        """Set the logits of all other tokens of these rows to -inf."""
        narrow = [(row, found.tokens()) for row, found in allowed.items() if len(found.ids) <= _WIDE]
        wide: dict[int, tuple[np.ndarray, list[int]]] = {}  # rows by their set
        closed: list[tuple[int, np.ndarray]] = []
        for row, (ids, without) in allowed.items():
            if len(ids) > _WIDE:
                wide.setdefault(id(ids), (ids, []))[1].append(row)
                closed.append((row, ids[without]))
        parts = [*_pairs(narrow), *_pairs(closed), list(allowed), *(rows for _, rows in wide.values())]
        moved = async_tensor_h2d(np.concatenate(parts, dtype=np.int64, casting="unsafe"), self.device)
        rows, ids, closed_rows, closed_ids, every, *shared = moved.split([len(part) for part in parts])
        kept = [(rows, ids)]
        kept += [(at[:, None], self._on_device(one)[None]) for (one, _), at in zip(wide.values(), shared, strict=True)]
        values = [
            logits[place].nan_to_num_() for place in kept
        ]  # without finite logits, any token of the list's may come
        logits.index_fill_(0, every, -torch.inf)
        for place, value in zip(kept, values, strict=True):
            logits.index_put_(place, value)
        logits.index_put_((closed_rows, closed_ids), self._never)

    def _on_device(self, ids: np.ndarray) -> Tensor:
        """Return a wide set's ids on the device."""
        if id(ids) not in self._wide:
            if len(self._wide) == _KEPT:
                self._wide.clear()
            self._wide[id(ids)] = ids, async_tensor_h2d(ids.astype(np.int64), self.device)
        return self._wide[id(ids)][1]


class _List:
    """The list that a request writes. `output` is the request's own list of tokens: vLLM appends to it."""

    def __init__(self, state: ListState, output: Sequence[int]) -> None:
        self.state, self.output = state, output
        self.read = 0
        self._allowed: TokenSet | None = None

    def allowed(self) -> TokenSet:
        """Return the tokens that may follow the output."""
        if self._allowed is None or self.read < len(self.output):
            for token in self.output[self.read :]:
                self.state.advance(token)
            self.read = len(self.output)
            self._allowed = self.state.allowed()
        return self._allowed


def _pairs(sets: Sequence[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each token of some sets, and the token."""
    none = np.zeros(0, dtype=np.int64)
    rows = np.repeat([row for row, _ in sets], [len(ids) for _, ids in sets]) if sets else none
    return rows, np.concatenate([ids for _, ids in sets]) if sets else none
