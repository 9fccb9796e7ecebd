"""rollout=vllm_server: rollouts from vLLM servers beside the trainer."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from convrec_r1.base.errors import UserError
from convrec_r1.policy import Policy
from convrec_r1.rollout.base import Completion, Sampling
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.rollout.lines import LineCutter
from convrec_r1.rollout.vllm import agreement, options
from convrec_r1.rollout.vllm.fleet import Fleet, Request
from convrec_r1.rollout.vllm.member import Member
from convrec_r1.rollout.vllm.placement import assign_gpus, computes_on_cpu, visible_gpus
from convrec_r1.rollout.vllm.process import LocalProcess, server_flags
from convrec_r1.rollout.vllm.ranks import Ranks
from convrec_r1.rollout.vllm.server import Server
from convrec_r1.rollout.vllm.transfer import FileTransfer, Transfer, scratch_folder
from convrec_r1.rollout.weights import stream_weights


class ServerEngine:
    """Servers that are started here with the first `sync`, and again after `close`, or that run at `cfg.servers`.

    Of several trainer processes the first speaks to them, for all. The weights of a sync are kept until the next has
    reached every server: one that comes back gets those, whatever the trainer has made of its own since.
    """

    def __init__(self, cfg: RolloutConfig, policy: Policy, *, max_length: int) -> None:
        """policy: of the architecture that will be sampled.  max_length: of prompt and completion, in tokens."""
        self.cfg = cfg
        self.max_length = options.fitting_length(policy, max_length)
        self.cut = LineCutter(policy.newline, policy.blank)
        self.ranks = Ranks()
        self.counts: Counter[str] = Counter()
        self._policy = policy
        self._synced = False
        self._fleet: Fleet | None = None

    @property
    def restarts(self) -> int:
        """How often a server had to be started again."""
        return self.counts["restarts"]

    @property
    def regenerated(self) -> int:
        """How many groups had to be asked for again."""
        return self.counts["regenerated"]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        if not (self._synced and (self._fleet or self.ranks.own)):
            self.sync(self._policy)
        own: list[Request] = [
            (list(prompt), options.sampling_arguments(sampling, seed, self._policy.eos_ids))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        parts = self.ranks.gather(own)
        start = sum(map(len, parts[: self.ranks.own]))
        mine = range(start, start + len(own))

        def done(place: int) -> None:
            if on_progress and place in mine:
                on_progress(sampling.n)

        groups = self.ranks.share(lambda: self._open_fleet.generate([r for part in parts for r in part], done))
        if self.ranks.own and on_progress:
            on_progress(len(own) * sampling.n)
        return [[self.cut(completion, sampling.max_lines) for completion in groups[place]] for place in mine]

    def sync(self, policy: Policy) -> None:
        self._policy, self._synced = policy, False
        self.ranks.join()
        dtype, tied = self.ranks.share(self._connect)
        weights = stream_weights(policy, dtype=dtype, tied=tied)
        problem = None
        if self.ranks.own == 0:
            try:
                self._open_fleet.publish(weights)
            except Exception as error:
                problem = error
        for _ in weights:  # where training is sharded, every process has a share in gathering them
            pass
        self.ranks.share(lambda: self._settle(problem))
        self._synced = True

    def close(self) -> None:
        self._synced = False
        self.ranks.leave()
        if not self._fleet:
            return
        self._fleet.close()
        self._fleet = None
        self._scratch.cleanup()
        if self._logs and not self.counts["faults"]:  # whoever reads of a fault may want to read more
            shutil.rmtree(self._logs, ignore_errors=True)

    def _connect(self) -> tuple[torch.dtype, bool]:
        """Every server up and fit for the run. Returns how they take weights: in which dtype, and whether tied."""
        if not self._fleet:
            self._open()
        fleet = self._open_fleet
        fleet.version = None  # the weights that they have count no more
        fleet.bring_up()
        engines = [(member.known_engine, member.name) for member in fleet.live]
        ways = {(engine.dtype, engine.tied, engine.transfer): name for engine, name in engines}
        if len(ways) > 1:
            raise UserError(
                "The servers of a run must take the same weights in the same way. These do not: "
                + "; ".join(
                    f"{name}: {dtype}, tied {tied}, {transfer}" for (dtype, tied, transfer), name in ways.items()
                )
                + ". Start them with the same flags."
            )
        dtype, tied, backend = next(iter(ways))
        self._weights = partial(stream_weights, dtype=getattr(torch, dtype), tied=tied)
        if not fleet.transfer:
            fleet.transfer = self._transfer(backend)
        return getattr(torch, dtype), tied

    def _settle(self, problem: Exception | None) -> None:
        """What was published, delivered to every server."""
        if problem:
            raise problem
        fleet = self._open_fleet
        fleet.bring_up()
        assert fleet.transfer is not None
        fleet.transfer.withdraw_older()

    @property
    def _open_fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    def _open(self) -> None:
        cfg, policy = self.cfg, self._policy
        backend = self._backend()
        size = sum(weight.numel() * weight.element_size() for weight in policy.parameters())
        self._scratch = scratch_folder(size * (self.ranks.size if policy.shard_root else 1), cfg.transfer_folder)
        self._logs = None if cfg.servers else Path(tempfile.mkdtemp(prefix="convrec-r1-servers-"))

        def examine(server: Server) -> agreement.Engine:
            return agreement.examine(server, self._policy, max_length=self.max_length, transfer=backend)

        member = partial(Member, cfg=cfg, examine=examine, counts=self.counts)
        if cfg.servers:
            members = [member(f"The vLLM server at {address}", address=address) for address in cfg.servers]
        else:
            assert backend is not None  # as these are no given servers
            assert self._logs is not None
            launchers = self._launchers(backend, self._logs)
            members = [member(f"vLLM server {k}", launch=launch) for k, launch in enumerate(launchers, start=1)]
        self._fleet = Fleet(members, cfg, self.counts)

    def _launchers(self, backend: str, logs: Path) -> list[Callable[[], LocalProcess]]:
        """What starts each of the servers that are ours."""
        cfg, on_cpu, scratch = self.cfg, computes_on_cpu(), Path(self._scratch.name)
        setup = options.setup(cfg, self._policy, scratch / "model", max_length=self.max_length, on_cpu=on_cpu)
        flags = [*setup.flags(), *server_flags(backend)]
        if on_cpu and cfg.tensor_parallel_size == 1:
            # A process less than vLLM gives a single worker on CPUs, and a third of the start.
            flags += ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]
        gpus: Sequence[list[str] | None] = [None] * cfg.start
        if not on_cpu:
            gpus = assign_gpus(visible_gpus(), self.ranks.size, cfg.start, cfg.tensor_parallel_size)
        return [
            partial(LocalProcess, flags, logs / f"server-{k}.log", scratch, gpus[k - 1])
            for k in range(1, cfg.start + 1)
        ]

    def _backend(self) -> str | None:
        """vLLM's name of the way that weights take. None: the one that the servers at hand were started with."""
        cfg = self.cfg
        if cfg.transfer != "auto":
            return {"file": FileTransfer.backend, "nccl": "nccl"}[cfg.transfer]
        if cfg.servers:
            return None
        # NCCL takes a GPU for each side.
        spare = 0 if computes_on_cpu() else len(visible_gpus()) - self.ranks.size
        apart = self._on_one_gpu() and spare >= cfg.tensor_parallel_size
        return "nccl" if apart else FileTransfer.backend

    def _transfer(self, backend: str | None) -> Transfer:
        if backend == FileTransfer.backend:
            return FileTransfer(Path(self._scratch.name))
        if backend != "nccl" or not self._on_one_gpu():
            raise UserError(
                f"The servers take weights by {backend}. The trainer gives them by convrec_file (rollout.transfer=file) or, if "
                "it is one process on a GPU, by nccl."
            )
        from convrec_r1.rollout.vllm.nccl import NcclTransfer

        return NcclTransfer(lambda: self._weights(self._policy), self._policy.device, lasting=not self.cfg.overlap)

    def _on_one_gpu(self) -> bool:
        return self._policy.device.type == "cuda" and self.ranks.size == 1
