"""rollout=vllm_server: rollouts from vLLM servers beside the trainer."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from convrec_r1.base.errors import UserError
from convrec_r1.base.processes import Channel
from convrec_r1.policy import Policy
from convrec_r1.policy.weights import stream_weights
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.config import VLLMServerConfig
from convrec_r1.rollout.lines import LineCutter
from convrec_r1.rollout.vllm import agreement, process
from convrec_r1.rollout.vllm.fleet import Fleet, Member, Request
from convrec_r1.rollout.vllm.options import SERVER, fitting_length, flags, sampling_arguments, setup
from convrec_r1.rollout.vllm.process import LocalProcess
from convrec_r1.rollout.vllm.server import Server

MEMORY = Path("/dev/shm")


class ServerEngine:
    """Servers that are started here at the first `sync`, and again after `close`, or that run at `options.servers`.

    Of several trainer processes the first one talks to the servers, for all. The weights of a sync are kept until every server
    has the next ones: a server that restarts gets those, whatever the trainer has done since.
    """

    def __init__(self, options: VLLMServerConfig, policy: Policy, *, max_length: int) -> None:
        self.options = options
        self.max_length = fitting_length(policy, max_length)
        self.cut = LineCutter.of(policy)
        self.trainers = Channel()
        self.counts: Counter[str] = Counter()  # restarts of servers, faults, groups regenerated
        self._policy = policy
        self._synced = False
        self._fleet: Fleet | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._submitted: list[Future] = []

    def submit(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Future[list[list[Completion]]]:
        """Sample in a thread. The next `sync` waits for it: a group comes from one set of weights."""
        self._submitted.append(self._thread.submit(self.generate, prompts, seeds, sampling))
        return self._submitted[-1]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        if not (self._synced and (self._fleet or self.trainers.rank)):
            self.sync(self._policy)
        rank = self.trainers.rank
        own: list[Request] = [
            (list(prompt), sampling_arguments(sampling, seed, self._policy.eos_ids))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        parts = self.trainers.gather(own)
        requests = list(chain(*parts))
        start = sum(map(len, parts[:rank]))
        mine = range(start, start + len(own))

        def done(place: int) -> None:
            if on_progress and place in mine:
                on_progress(sampling.n)

        groups = self.trainers.share(lambda: self._open_fleet.generate(requests, done))
        if rank and on_progress:
            on_progress(len(own) * sampling.n)
        return [[self.cut(completion, sampling.max_lines) for completion in groups[place]] for place in mine]

    def sync(self, policy: Policy) -> None:
        wait(self._submitted)  # their errors are raised where their results are taken
        self._submitted.clear()
        self._policy, self._synced = policy, False
        self.trainers.join()
        dtype, tied = self.trainers.share(self._connect)
        weights = stream_weights(policy, dtype=dtype, tied=tied)
        problem = None
        if self.trainers.rank == 0:
            try:
                self._open_fleet.publish(weights)
            except Exception as error:
                problem = error
        for _ in weights:  # where training is sharded, every process takes part in gathering
            pass

        def deliver() -> None:
            if problem:
                raise problem
            self._open_fleet.bring_up()
            self._open_fleet.keep(1)

        self.trainers.share(deliver)
        self._synced = True

    def close(self) -> None:
        self._synced = False
        self.trainers.leave()
        if not self._fleet:
            return
        self._fleet.close()
        self._fleet = None
        self._scratch.cleanup()
        if self._logs and not self.counts["faults"]:  # logs of servers that failed stay, to be read
            shutil.rmtree(self._logs, ignore_errors=True)

    @property
    def _open_fleet(self) -> Fleet:
        if self._fleet is None:
            self._fleet = self._open()
        return self._fleet

    def _connect(self) -> tuple[torch.dtype, bool]:
        """Bring every server up and check it. Return how they take weights: dtype, and whether head and embeddings are tied."""
        fleet = self._open_fleet
        fleet.version = None  # their present weights do not count any more
        fleet.bring_up()
        kinds = {(member.engine.dtype, member.engine.tied): member.name for member in fleet.live if member.engine}
        (dtype, tied), *others = kinds
        if others:
            found = "; ".join(f"{name}: {dtype}, tied {tied}" for (dtype, tied), name in kinds.items())
            raise UserError(
                f"All servers of a run must take the same weights. These do not: {found}. Start them with the same flags."
            )
        return getattr(torch, dtype), tied

    def _open(self) -> Fleet:
        options, policy = self.options, self._policy
        size = sum(weight.numel() * weight.element_size() for weight in policy.parameters())
        self._scratch = scratch_folder(size * (self.trainers.size if policy.shard_root else 1), options.transfer_folder)
        self._logs = None if options.servers else Path(tempfile.mkdtemp(prefix="convrec-r1-servers-"))

        server = partial(Server, timeout=options.request_timeout)
        if self._logs is None:
            members = [Member(f"The vLLM server at {address}", server(address)) for address in options.servers]
        else:
            launchers = self._launchers(self._logs)
            members = [Member(f"vLLM server {k}", server(""), launch) for k, launch in enumerate(launchers, start=1)]
        return Fleet(members, options, self._examine, Path(self._scratch.name), self.counts)

    def _examine(self, server: Server) -> agreement.Engine:
        return agreement.examine(server, self._policy, max_length=self.max_length)

    def _launchers(self, logs: Path) -> list[Callable[[], LocalProcess]]:
        """Return a function for each server of `options.start` that starts it."""
        options, on_cpu, scratch = self.options, process.computes_on_cpu(), Path(self._scratch.name)
        made = setup(options, self._policy, scratch / "model", max_length=self.max_length, on_cpu=on_cpu)
        arguments, each = {**made.arguments, **SERVER}, options.tensor_parallel_size
        if on_cpu and each == 1:
            # One process less than vLLM's default for a single worker on CPUs, which saves a third of the start.
            arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
        gpus: Sequence[list[str] | None] = [None] * options.start
        if not on_cpu:
            gpus = process.assign_gpus(process.visible_gpus(), self.trainers.size, options.start, each)
        start = partial(LocalProcess, flags(arguments), scratch=scratch)
        return [partial(start, logs / f"server-{k}.log", gpus=seen) for k, seen in enumerate(gpus, start=1)]


def scratch_folder(size: int, within: str | None) -> tempfile.TemporaryDirectory:
    """Create a folder for weights of `size` bytes: in `within`, else in memory if there is room, else on disk."""
    if within:
        Path(within).mkdir(parents=True, exist_ok=True)
    elif MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * size:  # two sets, and as much for others
        within = str(MEMORY)
    folder = tempfile.TemporaryDirectory(prefix="convrec-r1-weights-", dir=within, ignore_cleanup_errors=True)
    if within:
        Path(folder.name).chmod(0o755)  # for servers of another user
    return folder
