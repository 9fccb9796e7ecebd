"""A logits processor for vLLM that ends a completion once enough of its lines are closed."""

# vLLM is optional.
# pyright: reportMissingImports=none

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from convrec_r1.rollout.lines import LineCounter
from convrec_r1.rollout.vllm.options import LINE_TABLES


class StopAfterLines(AdapterLogitsProcessor):
    """Allows only EOS after `extra_args["max_lines"]` lines with text.

    This EOS is not sampled from the policy, so `rollout/lines.py` removes it from the completion.
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        file = Path(vllm_config.model_config.model) / LINE_TABLES
        self.tables = torch.load(file, weights_only=True) if file.exists() else None
        if self.tables:
            self.tables |= {name: table.tolist() for name, table in self.tables.items() if name != "eos"}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        lines = (sampling_params.extra_args or {}).get("max_lines")
        if lines is not None and (not isinstance(lines, int) or lines < 1):
            raise ValueError(f"max_lines={lines!r}: must be a whole number of at least 1")

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "Limit | None":
        limit = (params.extra_args or {}).get("max_lines")
        return Limit(limit, **self.tables) if limit and self.tables else None


class Limit:
    """Stops one growing completion. Called with its token ids and the logits [V] of the next token."""

    def __init__(self, lines: int, *, eos: int, **tables: Any) -> None:
        """tables: arguments of `LineCounter`."""
        self.lines, self.eos, self.read = lines, eos, 0
        self.counter = LineCounter(**tables)

    def __call__(self, output: list[int], logits: Tensor) -> Tensor:
        for token in output[self.read :]:
            if token < 0:  # not yet copied from the GPU: the completion then ends a token later
                break
            self.counter.add(token)
            self.read += 1
        if self.counter.count >= self.lines:
            logits.fill_(-torch.inf)
            logits[self.eos] = 0.0
        return logits
