"""vLLM in the trainer's process: it has weights of its own, and shares the trainer's device."""

# vLLM is optional. Where it is not installed, type checkers take this folder for it.
# pyright: reportMissingImports=none

import contextlib
import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from convrec_r1.policy import Policy
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.rollout.lines import LineCutter
from convrec_r1.rollout.vllm import options
from convrec_r1.rollout.weights import SyncCheck, stream_weights

Request = tuple[Sequence[int], int]  # a prompt and its group's seed


class VLLMEngine:
    """An engine in every process of a run. `sync` streams the policy's weights into it; it may sleep between rollouts.

    It starts with the first `sync`, when the run's processes have found each other, and again after `close`.
    """

    def __init__(self, cfg: RolloutConfig, policy: Policy, *, max_length: int) -> None:
        """policy: of the architecture that will be sampled.  max_length: of prompt and completion, in tokens."""
        self.cfg, self.max_length = cfg, max_length
        self.check = SyncCheck(cfg.checksum_every)
        self.cut = LineCutter(policy.newline, policy.blank)
        self._policy = policy
        self._llm: Any = None
        self._awake = True

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]

        if self._llm is None or not self._awake:
            self.sync(self._policy)
        together = self.cfg.tensor_parallel_size
        requests, mine = _of_all(list(zip(prompts, seeds, strict=True)), together)
        eos_ids = self._policy.eos_ids
        outputs = self._running.generate(
            [{"prompt_token_ids": list(prompt)} for prompt, _ in requests],
            [
                SamplingParams(**options.sampling_arguments(sampling, seed, eos_ids), flat_logprobs=True)
                for _, seed in requests
            ],
            use_tqdm=_progress(on_progress) if on_progress and together == 1 else False,
        )
        if self.cfg.sleep:
            self._running.sleep(level=2)
            self._awake = False
        return [
            [self.cut(_completion(choice), sampling.max_lines) for choice in output.outputs] for output in outputs[mine]
        ]

    def sync(self, policy: Policy) -> None:
        """Weights go in one at a time, in the order of the layers; what was computed with the old ones is forgotten."""
        self._policy = policy
        if self._llm is None:
            self._start()
        if not self._awake:
            self._running.wake_up(tags=["weights"])
        weights = self.check.watch(stream_weights(policy, dtype=self.setup.dtype, tied=self.setup.tied))
        # Always with an iterator: without one vLLM silently loads again what it started from.
        self._running.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self._awake:
            self._running.wake_up(tags=["kv_cache"])
            self._awake = True
        self._running.reset_prefix_cache()
        self.check.compare("vLLM", lambda: _over_workers(self._running.collective_rpc("weight_sums")))

    def close(self) -> None:
        """Give the memory back, and the process group if the engine made one."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        if self._owns_group:
            from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

            destroy_model_parallel()
            destroy_distributed_environment()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _running(self) -> Any:
        assert self._llm is not None
        return self._llm

    def _start(self) -> None:
        self._owns_group = not dist.is_initialized()
        with tempfile.TemporaryDirectory(prefix="convrec-r1-") as folder, _undisturbed():
            self.setup = options.setup(
                self.cfg, self._policy, Path(folder), max_length=self.max_length, on_cpu=options.runs_on_cpu()
            )
            from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]

            self._llm = LLM(
                **self.setup.arguments,
                **_launcher(self.cfg.tensor_parallel_size),
                skip_tokenizer_init=True,  # tokens go in and come out
                enable_sleep_mode=self.cfg.sleep,
                disable_log_stats=True,
            )
        self._awake = True


def _completion(choice: Any) -> Completion:
    return Completion(
        np.asarray(choice.token_ids, dtype=np.int64),
        np.asarray(choice.logprobs.logprobs, dtype=np.float32),
        "length" if choice.finish_reason == "length" else "stop",
    )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """vLLM seeds every generator of the process, and sets its threads, when it starts: the trainer keeps its own."""
    # In this process, not in one that vLLM would start.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    states = random.getstate(), np.random.get_state()
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)


def _launcher(tensor_parallel_size: int) -> dict[str, Any]:
    """With several processes each brings its own worker; as many in a row as share a model's matrices work together."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return {}
    os.environ["RANK"] = str(dist.get_rank())
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    return {"distributed_executor_backend": "external_launcher", "seed": dist.get_rank() // tensor_parallel_size}


def _of_all(requests: list[Request], together: int) -> tuple[list[Request], slice]:
    """The requests of the processes that work together, and where this one's stand among them."""
    if together == 1:
        return requests, slice(None)
    parts, place = _gather(requests)
    start = sum(map(len, parts[:place]))
    return [request for part in parts for request in part], slice(start, start + len(requests))


def _over_workers(sums: list[dict[str, int]]) -> list[dict[str, int]]:
    """Those of this process's worker; of all that hold shares of one model, where several do."""
    parts, _ = _gather(sums)
    return [worker for part in parts for worker in part]


def _gather(part: Any) -> tuple[list[Any], int]:
    """What each of the processes brings whose workers share one model, and the place of this one among them."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return [part], 0
    parts: list[Any] = [None] * group.world_size
    dist.all_gather_object(parts, part, group=group.cpu_group)
    return parts, group.rank_in_group


def _progress(on_progress: Callable[[int], None]) -> Callable[..., Any]:
    """vLLM reports to a tqdm; this one passes on what is done and draws nothing."""
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, iterable=None, **options: Any) -> None:
            self.counts = iterable is None
            options["file"] = open(os.devnull, "w")  # noqa: SIM115
            super().__init__(iterable, **options)

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self.counts:
                on_progress(int(n or 0))

    return Silent
