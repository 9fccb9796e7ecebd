"""Lists from vLLM in this process: requests are added to the engine while it runs (continuous batching)."""

# vLLM is optional. Where it is not installed, type checkers take this file for it.
# pyright: reportMissingImports=none

from __future__ import annotations

from typing import Any

from convrec_r1.policy.policy import Policy
from convrec_r1.rollout.config import VLLMConfig
from convrec_r1.rollout.constraint import Constraint
from convrec_r1.rollout.vllm.inprocess import VLLMEngine
from convrec_r1.rollout.vllm.options import sampling_arguments
from convrec_r1.serve.stepper import Job, Written


class VLLMStepper:
    """A list begins with the next step after it was added, whatever the engine writes at the time."""

    def __init__(self, options: VLLMConfig, policy: Policy, constraint: Constraint | None, *, max_length: int) -> None:
        """max_length: upper limit of prompt and list together, in tokens."""
        self.capacity = options.max_num_seqs
        self._eos_ids = policy.eos_ids
        self._engine = VLLMEngine(options, policy, max_length=max_length, constraint=constraint)
        self._engine.sync(policy)
        self._keys: set[int] = set()

    def add(self, key: int, job: Job) -> None:
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
        from vllm.sampling_params import RequestOutputKind

        arguments = sampling_arguments(job.sampling, job.seed, self._eos_ids, job.opening)
        parameters = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)
        self._engine.running.add_request(str(key), {"prompt_token_ids": list(job.prompt)}, parameters)
        self._keys.add(key)

    def step(self) -> list[Written]:
        if not self._keys:
            return []
        written = [_written(output) for output in self._engine.running.step()]
        self._keys.difference_update(one.key for one in written if one.finished)
        return written

    def abort(self, key: int) -> None:
        if key in self._keys:
            self._keys.remove(key)
            self._engine.running.abort_request([str(key)])

    def reset(self) -> None:
        for key in list(self._keys):
            self.abort(key)

    def close(self) -> None:
        self._engine.close()


def _written(output: Any) -> Written:
    (choice,) = output.outputs
    tokens = list(choice.token_ids)
    logprobs = [found[token].logprob for token, found in zip(tokens, choice.logprobs or (), strict=True)]
    finished = ("length" if choice.finish_reason == "length" else "stop") if output.finished else None
    return Written(int(output.request_id.partition("-")[0]), tokens, logprobs, finished)
