"""A logits processor for vLLM that ends a completion once enough of its lines are closed."""

# vLLM is optional. Where it is not installed, type checkers take this folder for it.
# pyright: reportMissingImports=none

from pathlib import Path

import torch
from torch import Tensor
from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from convrec_r1.rollout.vllm.options import LINE_TABLES


class StopAfterLines(LogitsProcessor):
    """Leaves EOS alone possible after `extra_args["max_lines"]` lines that hold text.

    The EOS that is so forced is no choice of the policy's: whoever asked drops it (`rollout/lines.py`).
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        tables = Path(vllm_config.model_config.model) / LINE_TABLES
        self.tables = torch.load(tables, weights_only=True) if tables.exists() else None
        if self.tables:
            self.newline, self.blank = self.tables["newline"].tolist(), self.tables["blank"].tolist()
        self.requests: dict[int, _Lines] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        lines = (sampling_params.extra_args or {}).get("max_lines")
        if lines is not None and (not isinstance(lines, int) or lines < 1):
            raise ValueError(f"max_lines={lines!r}: must be a whole number of at least 1")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update:
            self._follow(batch_update)

    def apply(self, logits: Tensor) -> Tensor:
        full = [row for row, lines in self.requests.items() if lines.closed(self.newline, self.blank)]
        if full and self.tables:
            logits[full] = -torch.inf
            logits[full, self.tables["eos"]] = 0.0
        return logits

    def _follow(self, update: BatchUpdate) -> None:
        for row in update.removed:
            self.requests.pop(row, None)
        for row, params, _, output in update.added:
            self.requests.pop(row, None)
            limit = (params.extra_args or {}).get("max_lines")
            if limit and self.tables:
                self.requests[row] = _Lines(limit, output)
        for a, b, direction in update.moved:
            first, second = self.requests.pop(a, None), self.requests.pop(b, None)
            if first is not None:
                self.requests[b] = first
            if second is not None and direction is MoveDirectionality.SWAP:
                self.requests[a] = second


class _Lines:
    """Counts the closed lines of one growing completion."""

    def __init__(self, limit: int, output: list[int]) -> None:
        self.limit, self.output = limit, output
        self.read = self.count = 0
        self.text = False

    def closed(self, newline: list[bool], blank: list[bool]) -> bool:
        for token in self.output[self.read :]:
            if token < 0:  # a token that is still on its way from the GPU: the list then ends a token later
                break
            self.text = self.text or not blank[token]
            if newline[token] and self.text:
                self.count, self.text = self.count + 1, False
            self.read += 1
        return self.count >= self.limit
