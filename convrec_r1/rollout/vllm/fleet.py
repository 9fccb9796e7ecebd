"""Servers that hold the same weights: brought up together, sharing the prompts, each of them allowed to fail."""

import asyncio
import contextlib
import logging
import math
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import httpx

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.base import Completion
from convrec_r1.rollout.checksums import Named, SyncCheck
from convrec_r1.rollout.config import VLLMServerConfig
from convrec_r1.rollout.vllm.member import Member
from convrec_r1.rollout.vllm.server import PROBE, ServerAway, ServerFault
from convrec_r1.rollout.vllm.transfer import FileTransfer

_log = logging.getLogger(__name__)

Request = tuple[Sequence[int], dict[str, Any]]
"""A prompt and how its group is sampled, by the names of `vllm.SamplingParams`."""

CLOSED = "The vLLM servers were closed."
RESUME = "Nothing of this rollout was trained on: the same command resumes from the run's last checkpoint."


class Fleet:
    """Takes each group whole from one server, every token from the newest weights, or requests it again."""

    def __init__(
        self, members: list[Member], options: VLLMServerConfig, transfer: FileTransfer, counts: Counter[str]
    ) -> None:
        """counts: "regenerated" is counted here: groups that were requested again."""
        self.members, self.options, self.transfer, self.counts = members, options, transfer, counts
        self.check = SyncCheck(options.checksum_every)
        self.version: str | None = None  # of the weights that every server must have
        # Names of weights start with a random part: a server with another run's weights never passes for up to date.
        self._run, self._published = secrets.token_hex(4), 0
        self._threads = ThreadPoolExecutor(len(members), thread_name_prefix="servers")
        self._lock = threading.Lock()
        self._rollout: tuple[asyncio.AbstractEventLoop, asyncio.Task | None] | None = None  # the one under way
        self._closed = False

    @property
    def live(self) -> list[Member]:
        return [member for member in self.members if not member.dropped]

    def bring_up(self) -> None:
        """Bring every server up, examine it and give it the published weights. Servers that keep failing are dropped.

        Raises:
            UserError: no server is left, or one does not fit the run.
            SyncError: a server has other weights than it was given.
        """
        futures = [self._threads.submit(self._bring_up, m) for m in self.members if not (m.dropped and m.launch)]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()

    def publish(self, weights: Iterable[Named]) -> None:
        """Take new weights for all servers; `bring_up` delivers them. Draws the whole stream."""
        self._published += 1
        version = f"{self._run}-{self._published}"
        self.transfer.publish(self.check.watch(weights), version)
        self.version = version

    def generate(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> list[list[Completion]]:
        """Return a group for each request, in order. on_done: called with the place of each finished group."""
        job = _Job(requests, on_done)
        for member in self.live:
            member.succeeded()  # faults of an earlier rollout do not count
        try:
            if requests:
                asyncio.run(self._sample(job))
        except asyncio.CancelledError:
            raise UserError(CLOSED) from None
        finally:
            self.counts["regenerated"] += job.requested.total() - len(job.requested)
        return job.groups

    def close(self) -> None:
        """Stop the servers that were started here, and a rollout that is under way."""
        self._closed = True
        if self._rollout:
            loop, task = self._rollout
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel if task else lambda: None)
        self._stop_members()
        self._threads.shutdown()
        self._stop_members()  # one that a thread was just starting
        self.transfer.close()

    def _stop_members(self) -> None:
        with ThreadPoolExecutor(len(self.members)) as threads:
            list(threads.map(Member.stop, self.members))

    # Bringing up

    def _bring_up(self, member: Member) -> None:
        while True:
            patience = self._patience(member) if member.met else PROBE
            try:
                member.renew(patience, self._give)
            except ServerFault as fault:
                if member.dropped:
                    return
                self._failed(member, fault)
            else:
                if member.dropped:
                    _log.warning("%s is back.", member.name)
                member.dropped = False
                member.succeeded()
                return

    def _patience(self, member: Member) -> float:
        """Seconds to wait for a server that was not started here: none, unless it is the last one."""
        return self.options.start_timeout if self.live == [member] else 0.0

    def _give(self, member: Member) -> None:
        """Give it the newest weights, unless it has them."""
        if self.version is None or member.server.weight_version() == self.version:
            return
        self.transfer.deliver(member.server)
        self.check.compare(member.name, member.server.weight_sums)

    def _failed(self, member: Member, fault: ServerFault) -> None:
        """Note the fault. Return if the server is to be tried again, or drop it. Raises UserError if it is the last one."""
        with self._lock:
            member.failed(fault)
            if self._closed:
                raise UserError(CLOSED) from fault
            if not member.met:
                raise UserError(member.unusable(fault)) from fault
            if member.faults <= self.options.retries and not isinstance(fault, ServerAway):
                _log.warning("%s failed (%s). Its groups are requested again, there or elsewhere.", member.name, fault)
            elif self.live == [member]:
                raise UserError(f"{member.given_up(fault)}\n{RESUME}") from fault
            else:
                member.dropped = True
                _log.warning("%s The other servers continue without it.", member.given_up(fault))

    # A rollout

    async def _sample(self, job: "_Job") -> None:
        self._rollout = asyncio.get_running_loop(), asyncio.current_task()
        done = asyncio.ensure_future(job.done.wait())
        work = asyncio.ensure_future(self._drive_all(job))
        try:
            await asyncio.wait([done, work], return_when=asyncio.FIRST_COMPLETED)
            if not job.done.is_set():
                await work  # it raises: as long as groups are missing, the last server is not dropped
        finally:
            self._rollout = None
            work.cancel()

    async def _drive_all(self, job: "_Job") -> None:
        await asyncio.gather(*(self._drive(member, job) for member in self.live))

    async def _drive(self, member: Member, job: "_Job") -> None:
        """Take groups from one server until it is dropped."""
        while True:
            try:
                if not member.ready:
                    await asyncio.to_thread(member.renew, self._patience(member), self._give)
                await self._serve(member, job)
            except ServerFault as fault:
                self._failed(member, fault)
                if member.dropped:
                    return
                if max((job.requested[place] for place in job.missing), default=0) > self.options.retries:
                    text = f"A group was requested {self.options.retries + 1} times without success."
                    raise UserError(f"{text} {member.given_up(fault)}\n{RESUME}") from fault
                await asyncio.sleep(min(0.1 * 4**member.faults, PROBE))

    async def _serve(self, member: Member, job: "_Job") -> None:
        """Request groups from one server until one fails. The groups under way then go back to the job."""
        assert member.engine is not None
        # Twice the sequences that it advances at a time: when a group ends, the next one is already there.
        slots = min(len(job.requests), math.ceil(2 * member.engine.max_num_seqs / job.n))
        async with member.server.session() as session:
            serving = [asyncio.ensure_future(self._slot(member, session, job)) for _ in range(slots)]
            try:
                await asyncio.gather(*serving)
            finally:
                for task in serving:
                    task.cancel()
                await asyncio.gather(*serving, return_exceptions=True)

    async def _slot(self, member: Member, session: httpx.AsyncClient, job: "_Job") -> None:
        """Request group after group."""
        assert self.version is not None
        while True:
            place = await job.queue.get()
            job.requested[place] += 1
            prompt, sampling = job.requests[place]
            try:
                group = await member.server.generate(session, prompt, sampling, self.version)
            except BaseException:
                job.queue.put_nowait(place)
                raise
            member.succeeded()
            job.finish(place, group)


class _Job:
    """The groups of one rollout: finished, under way and waiting."""

    def __init__(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> None:
        self.requests, self.on_done = requests, on_done
        self.n = max((sampling["n"] for _, sampling in requests), default=1)
        self.groups: list[Any] = [None] * len(requests)
        self.missing = set(range(len(requests)))
        self.requested: Counter[int] = Counter()  # times, by place
        self.done = asyncio.Event()
        self.queue: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for place in self.missing:
            self.queue.put_nowait(place)

    def finish(self, place: int, group: list[Completion]) -> None:
        self.groups[place] = group
        self.missing.remove(place)
        self.on_done(place)
        if not self.missing:
            self.done.set()
