"""vLLM in the trainer's process: an engine with weights of its own on the trainer's device."""

# vLLM is optional. Where it is not installed, type checkers take this folder for it.
# pyright: reportMissingImports=none

import contextlib
import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from convrec_r1.base import processes
from convrec_r1.policy import Policy
from convrec_r1.policy.weights import stream_weights
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.checksums import Named, SyncCheck
from convrec_r1.rollout.config import VLLMConfig
from convrec_r1.rollout.constraint import Constraint, Opening
from convrec_r1.rollout.lines import LineCutter
from convrec_r1.rollout.vllm.options import runs_on_cpu, sampling_arguments, setup


class VLLMEngine:
    """An engine in every trainer process. `sync` streams the policy's weights into it. It may sleep between rollouts.

    It starts with the first `sync`, when the run's processes have joined their group, and again after `close`.
    """

    constrains = True

    def __init__(
        self, options: VLLMConfig, policy: Policy, *, max_length: int, constraint: Constraint | None = None
    ) -> None:
        """constraint: that `openings` refer to."""
        self.options, self.max_length, self.constraint = options, max_length, constraint
        self.check = SyncCheck(options.checksum_every)
        self.cut = LineCutter.of(policy)
        self._policy = policy
        self._llm: Any = None
        self._awake = True

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
        openings: Sequence[Opening] | None = None,
    ) -> list[list[Completion]]:
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]

        if openings is not None and self.constraint is None:
            raise ValueError("openings need an engine that was built with a constraint")
        if not (self._llm and self._awake):
            self.sync(self._policy)
        # With tensor parallelism several processes are workers of one engine, which samples the prompts of all of them.
        own = zip(prompts, seeds, openings or [None] * len(prompts), strict=True)
        parts, place = _gather(list(own))
        start = sum(map(len, parts[:place]))
        requests = list(chain(*parts))
        sampled = [sampling_arguments(sampling, seed, self._policy.eos_ids, opening) for _, seed, opening in requests]
        outputs: list[Any] = []
        if requests:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt, *_ in requests],
                [SamplingParams(**arguments, flat_logprobs=True) for arguments in sampled],
                use_tqdm=_progress(on_progress) if on_progress and len(parts) == 1 else False,
            )
        if self.options.sleep:
            self._llm.sleep(level=2)
            self._awake = False
        return [
            [self.cut(_completion(choice), sampling.max_lines) for choice in output.outputs]
            for output in outputs[start : start + len(prompts)]
        ]

    def sync(self, policy: Policy) -> None:
        """Load the weights one at a time, in the order of the layers, and drop what was computed with the old ones."""
        self._policy = policy
        if not self._llm:
            self._start()
        if not self._awake:
            self._llm.wake_up(tags=["weights"])
        weights = self.check.watch(stream_weights(policy, dtype=self.setup.dtype, tied=self.setup.tied))
        self._take(weights)
        self.check.compare("vLLM", self.weight_sums)

    def load(self, weights: Iterable[Named]) -> None:
        """Sample from these weights from now on, as a rollout worker. They must have the `weight_format`."""
        self.weight_format()
        self._take(weights)

    def weight_format(self) -> tuple[torch.dtype, bool]:
        """Return how the engine takes weights: their dtype, and whether a head that shares the embeddings' is left out.

        Starts the engine.
        """
        if not self._llm:
            self._start()
        return self.setup.dtype, self.setup.tied

    def weight_sums(self) -> Iterable[dict[str, int]]:
        """Return sums of the bits of each worker's share of the weights (`WeightSums.by_layer`)."""
        return chain(*_gather(self._llm.collective_rpc("weight_sums"))[0])

    def close(self) -> None:
        """Free the memory, and the process group if the engine created it."""
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
    def running(self) -> Any:
        """vLLM's `LLMEngine`, after the first `sync`: it takes requests while it answers others."""
        return self._llm.llm_engine

    def _take(self, weights: Iterable[Named]) -> None:
        if self.options.tensor_parallel_size > processes.world_size():
            self._take_from_file(weights)
        else:
            # Always with an iterator: without one vLLM loads its first weights again, without a warning.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self._awake:
            self._llm.wake_up(tags=["kv_cache"])
            self._awake = True
        self._llm.reset_prefix_cache()

    def _take_from_file(self, weights: Iterable[Named]) -> None:
        """Hand weights over to processes that vLLM has started, which no iterator reaches: in a file, in memory if possible."""
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(prefix="convrec-r1-weights-", dir=memory) as folder:
            path, whole = f"{folder}/weights.safetensors", {name: weight.contiguous() for name, weight in weights}
            save_file(whole, path)
            self._llm.collective_rpc("load_file", args=(path, list(whole)))

    def _start(self) -> None:
        self._owns_group = not processes.joined()
        with tempfile.TemporaryDirectory(prefix="convrec-r1-") as folder, _undisturbed():
            self.setup = setup(
                self.options,
                self._policy,
                Path(folder),
                max_length=self.max_length,
                on_cpu=runs_on_cpu(),
                constraint=self.constraint,
            )
            from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]

            self._llm = LLM(
                **self.setup.arguments,
                **_launcher(self.options.tensor_parallel_size),
                skip_tokenizer_init=True,  # the engine gets and returns token ids
                enable_sleep_mode=self.options.sleep,
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
    """Keep the trainer's random states and threads: vLLM sets them for the whole process when it starts."""
    # The engine runs in this process, not in one that vLLM starts.
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
    """With several trainer processes each is a worker; `tensor_parallel_size` neighbours share one engine."""
    if processes.world_size() == 1:
        return {}
    rank = processes.rank()
    os.environ["RANK"] = str(rank)  # vLLM's launcher reads both
    os.environ.setdefault("LOCAL_RANK", str(rank))
    return {"distributed_executor_backend": "external_launcher", "seed": rank // tensor_parallel_size}


def _gather(part: Any) -> tuple[list[Any], int]:
    """Return the parts of all processes that share this engine, and the place of this process among them."""
    if processes.world_size() == 1:
        return [part], 0
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return [part], 0
    return processes.gather(part, group.cpu_group), group.rank_in_group


def _progress(on_progress: Callable[[int], None]) -> Callable[..., Any]:
    """A progress bar for vLLM that draws nothing and reports each finished completion to `on_progress`."""
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, iterable=None, **options: Any) -> None:
            self.counts = iterable is None  # the other bar counts prompts that are added
            options["file"] = open(os.devnull, "w")  # noqa: SIM115
            super().__init__(iterable, **options)

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self.counts:
                on_progress(int(n or 0))

    return Silent
