"""Servers that hold the same weights: brought up together, prompts split among them, the failure of any outlived."""

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
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.rollout.vllm.member import Member
from convrec_r1.rollout.vllm.server import PROBE, ServerAway, ServerFault
from convrec_r1.rollout.vllm.transfer import Transfer
from convrec_r1.rollout.weights import Named, SyncCheck

_log = logging.getLogger(__name__)

Request = tuple[Sequence[int], dict[str, Any]]
"""A prompt, and how its group is sampled, by the names of `vllm.SamplingParams`."""

CLOSED = "The vLLM servers were closed."
GO_ON = "Nothing of this rollout was trained on: the same command goes on from the run's last checkpoint."


class Fleet:
    """A group is taken whole from one server, every token from the newest weights, or it is asked for again."""

    def __init__(self, members: list[Member], cfg: RolloutConfig, counts: Counter[str]) -> None:
        """counts: has "regenerated" added to."""
        self.members, self.cfg, self.counts = members, cfg, counts
        self.check = SyncCheck(cfg.checksum_every)
        self.transfer: Transfer | None = None
        self.version: str | None = None  # of the weights that every server is to have
        # The names of weights are this run's own: a server that another run gave weights to never passes for up to date.
        self._run, self._published = secrets.token_hex(4), 0
        self._threads = ThreadPoolExecutor(len(members), thread_name_prefix="servers")
        self._lock = threading.Lock()
        self._rollout: tuple[asyncio.AbstractEventLoop, asyncio.Task] | None = None  # that is under way
        self._closed = False

    @property
    def live(self) -> list[Member]:
        return [member for member in self.members if not member.dropped]

    def bring_up(self) -> None:
        """Every server up, examined, and with the published weights. Those that fail for good are left out.

        Raises UserError where none is left or one does not fit, and SyncError where one turns out to have other weights.
        """
        coming = [self._threads.submit(self._bring_up, m) for m in self.members if not (m.dropped and m.launch)]
        for future in wait(coming, return_when=FIRST_EXCEPTION).done:
            future.result()

    def publish(self, weights: Iterable[Named]) -> None:
        """New weights for all, which `bring_up` then delivers. Draws all of them."""
        self._published += 1
        version = f"{self._run}-{self._published}"
        assert self.transfer is not None
        self.transfer.publish(self.check.watch(weights), version)
        self.version = version

    def generate(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> list[list[Completion]]:
        """A group for each request, in order. on_done: told the place of each one that is done."""
        job = _Job(requests, on_done)
        for member in self.live:
            member.succeeded()  # what failed before is settled
        try:
            if requests:
                asyncio.run(self._carry_out(job))
        except asyncio.CancelledError:
            raise UserError(CLOSED) from None
        finally:
            self.counts["regenerated"] += job.asked.total() - len(job.asked)
        return job.groups

    def close(self) -> None:
        """End the servers that were started here, and whatever is under way."""
        self._closed = True
        if self._rollout:
            loop, task = self._rollout
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)
        self._stop_members()
        self._threads.shutdown()
        self._stop_members()  # if a thread was just starting one
        if self.transfer:
            self.transfer.close()

    def _stop_members(self) -> None:
        stops = [threading.Thread(target=member.stop) for member in self.members]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()

    # Bringing up

    def _bring_up(self, member: Member) -> None:
        if member.renewal:  # the last rollout ended without it
            member.awaited = bool(member.launch)
            wait([member.renewal])
            member.renewal, member.awaited = None, True
        while True:
            alone = self.live == [member]
            patience = PROBE if not member.met else self.cfg.start_timeout if alone else 0.0
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

    def _give(self, member: Member) -> None:
        """The newest weights, unless it has them."""
        server = member.known_server
        if self.version is None or server.weight_version() == self.version:
            return
        assert self.transfer is not None
        self.transfer.deliver(server)
        self.check.compare(member.name, server.weight_sums)

    def _give_again(self, member: Member) -> None:
        assert self.transfer is not None
        if not self.transfer.lasting:
            raise UserError(
                f"{member.name} came back without its weights, and the trainer's are newer by now. {GO_ON} "
                "rollout.transfer=file keeps a rollout's weights until it is over."
            )
        self._give(member)

    def _failed(self, member: Member, fault: ServerFault) -> None:
        """Returns if the server is to be tried again, or is dropped. Raises UserError if the run cannot go on."""
        with self._lock:
            member.failed(fault)
            if self._closed:
                raise UserError(CLOSED) from fault
            if not member.met:
                raise UserError(_unusable(member, fault)) from fault
            if member.faults <= self.cfg.retries and not isinstance(fault, ServerAway):
                _log.warning(
                    "%s failed (%s). What it was at is asked for again, there or elsewhere.", member.name, fault
                )
            elif self.live == [member]:
                raise UserError(f"{_given_up(member, fault)}\n{GO_ON}") from fault
            else:
                member.dropped = True
                _log.warning("%s The others go on without it.", _given_up(member, fault))

    # A rollout

    async def _carry_out(self, job: "_Job") -> None:
        task = asyncio.current_task()
        assert task is not None
        self._rollout = asyncio.get_running_loop(), task
        drives = [asyncio.create_task(self._drive(member, job)) for member in self.live]
        done = asyncio.create_task(job.done.wait())
        waiting = {done, *drives}
        try:
            while not job.done.is_set():
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in ended - {done} if not job.done.is_set() else ():
                    task.result()
        finally:
            self._rollout = None
            await _cancel([done, *drives])

    async def _drive(self, member: Member, job: "_Job") -> None:
        """One server's share of the job, until it is dropped."""
        while True:
            try:
                if not member.ready:
                    await self._renewed(member)
                await self._serve(member, job)
            except ServerFault as fault:
                self._failed(member, fault)
                if member.dropped:
                    return
                if max((job.asked[place] for place in job.open), default=0) > self.cfg.retries:
                    asked = f"A group was asked for {self.cfg.retries + 1} times in vain. "
                    raise UserError(f"{asked}{_given_up(member, fault)}\n{GO_ON}") from fault
                await asyncio.sleep(min(0.1 * 4**member.faults, PROBE))

    async def _renewed(self, member: Member) -> None:
        # In a thread that outlives the rollout: while a server starts, the others may get everything done.
        if member.renewal is None:
            member.renewal = self._threads.submit(member.renew, self.cfg.start_timeout, self._give_again)
        try:
            await asyncio.wrap_future(member.renewal)
        finally:
            if member.renewal.done():
                member.renewal = None

    async def _serve(self, member: Member, job: "_Job") -> None:
        """Ends with the first failure; what was under way then goes back to the job."""
        # Twice what it advances at a time, so that a group that ends makes room for one that waits there already.
        slots = min(len(job.requests), math.ceil(2 * member.known_engine.max_num_seqs / job.n))
        async with member.known_server.session() as session:
            serving = [asyncio.create_task(self._slot(member, session, job)) for _ in range(slots)]
            try:
                ended, _ = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
            finally:
                await _cancel(serving)

    async def _slot(self, member: Member, session: httpx.AsyncClient, job: "_Job") -> None:
        """Group after group."""
        assert self.version is not None
        while True:
            place = await job.take()
            prompt, sampling = job.requests[place]
            try:
                group = await member.known_server.generate(session, prompt, sampling, self.version)
            except BaseException:
                job.put_back(place)
                raise
            member.succeeded()
            job.finish(place, group)


class _Job:
    """What a rollout asks for, and what it has got."""

    def __init__(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> None:
        self.requests, self.on_done = requests, on_done
        self.n = max((sampling["n"] for _, sampling in requests), default=1)
        self.groups: list[Any] = [None] * len(requests)
        self.open = set(range(len(requests)))
        self.asked: Counter[int] = Counter()  # how often, by place
        self.done = asyncio.Event()
        self._queue: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for place in self.open:
            self.put_back(place)

    async def take(self) -> int:
        """The next place to be filled, once there is one."""
        place = await self._queue.get()
        self.asked[place] += 1
        return place

    def put_back(self, place: int) -> None:
        self._queue.put_nowait(place)

    def finish(self, place: int, group: list[Completion]) -> None:
        self.groups[place] = group
        self.open.remove(place)
        self.on_done(place)
        if not self.open:
            self.done.set()


async def _cancel(tasks: Sequence[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _unusable(member: Member, fault: ServerFault) -> str:
    """Of a server that was never of any use."""
    if member.process:
        return f"{member.name} did not start: {fault}.{_log_of(member)}"
    return f"{member.name} does not answer: {fault}. Start one there, or correct rollout.servers."


def _given_up(member: Member, fault: ServerFault) -> str:
    times = f"{member.faults} failures in a row" if member.faults > 1 else "a failure"
    return f"{member.name} is given up after {times}: {fault}.{_log_of(member)}"


def _log_of(member: Member) -> str:
    if not member.process:
        return ""
    return f" Its log, {member.process.log}, says:\n{member.process.last_words()}"
