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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from safetensors import SafetensorError
from safetensors.torch import save_file

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.base import Completion
from convrec_r1.rollout.checksums import Named, SyncCheck
from convrec_r1.rollout.config import VLLMServerConfig
from convrec_r1.rollout.vllm.agreement import Engine
from convrec_r1.rollout.vllm.process import LocalProcess
from convrec_r1.rollout.vllm.server import PROBE, Server, ServerAway, ServerFault, ServerHung

_log = logging.getLogger(__name__)

Request = tuple[Sequence[int], dict[str, Any]]
"""A prompt and how its group is sampled, by the names of `vllm.SamplingParams`."""

CLOSED = "The vLLM servers were closed."
RESUME = "Nothing of this rollout was trained on: the same command resumes from the run's last checkpoint."


@dataclass(eq=False)
class Member:
    """A server that is started here (`launch`) and restarted as needed, or one that runs already."""

    title: str
    server: Server  # of `launch`: replaced at each start
    launch: Callable[[], LocalProcess] | None = None
    process: LocalProcess | None = None
    engine: Engine | None = None  # None: to be examined
    ready: bool = False  # has the newest weights, and has not failed since
    met: bool = False  # has been ready before
    dropped: bool = False
    faults: int = 0  # in a row
    suspect: bool = False  # to be restarted, if it was started here

    @property
    def name(self) -> str:
        return f"{self.title} at {self.server.address}" if self.process else self.title

    def succeeded(self) -> None:
        self.faults, self.suspect = 0, False

    def stop(self) -> None:
        if self.process:
            self.process.stop()

    def given_up(self, fault: ServerFault) -> str:
        """A message for people, with the end of the log of a server that was started here."""
        if not (self.met or self.process):
            return f"{self.name} does not answer: {fault}. Start one there, or correct rollout.servers."
        times = f"{self.faults} failures in a row" if self.faults > 1 else "a failure"
        what = f"is given up after {times}" if self.met else "did not start"
        log = f" Its log, {self.process.log}, says:\n{self.process.last_words()}" if self.process else ""
        return f"{self.name} {what}: {fault}.{log}"


class Fleet:
    """Takes each group whole from one server, every token from the newest weights, or requests it again."""

    def __init__(
        self,
        members: list[Member],
        options: VLLMServerConfig,
        examine: Callable[[Server], Engine],
        folder: Path,
        counts: Counter[str],
    ) -> None:
        """Start nothing yet.

        Args:
            examine: returns a server's engine, or raises UserError for a server that does not fit the run.
            folder: for the weights, under the same path for trainer and servers.
            counts: "restarts" and "faults" of servers, and groups "regenerated", are counted here.
        """
        self.members, self.options, self.examine = members, options, examine
        self.folder, self.counts = folder, counts
        self.check = SyncCheck(options.checksum_every)
        self.files: list[Path] = []  # weights; the last file has the newest ones, named in the order of loading:
        self.names: list[str] = []
        self.version: str | None = None  # of the weights that every server must have
        # Names of weights start with a random part: a server with another run's weights never passes for up to date.
        self._run, self._published = secrets.token_hex(4), 0
        self._threads = ThreadPoolExecutor(len(members), thread_name_prefix="servers")
        self._lock = threading.Lock()
        self._interrupt: Callable[[], Any] = lambda: None  # ends the rollout that is under way
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
        """Write new weights for all servers to a file; `bring_up` delivers them. Draws the whole stream.

        Raises:
            UserError: the folder has no room.
        """
        self._published += 1
        version = f"{self._run}-{self._published}"
        # Copies: a streamed tensor may be valid for its turn only, and two names may share memory.
        copies = {name: weight.to("cpu", copy=True).contiguous() for name, weight in self.check.watch(weights)}
        path = self.folder / f"weights-{version}.safetensors"
        self.files.append(path)
        try:
            save_file(copies, path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"The weights for the vLLM servers could not be written to {self.folder} ({error}). Make room there, or choose "
                "another folder with rollout.transfer_folder."
            ) from error
        self.names, self.version = list(copies), version

    def keep(self, newest: int) -> None:
        """Remove all weights but the `newest` last ones: 1 once every server has those, 0 at the end."""
        while len(self.files) > newest:
            self.files.pop(0).unlink(missing_ok=True)

    def generate(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> list[list[Completion]]:
        """Return a group for each request, in order. on_done: called with the place of each finished group."""
        for member in self.live:
            member.succeeded()  # faults of an earlier rollout do not count
        try:
            return asyncio.run(self._sample(requests, on_done)) if requests else []
        except asyncio.CancelledError:
            raise UserError(CLOSED) from None

    def close(self) -> None:
        """Stop the servers that were started here, and a rollout that is under way."""
        self._closed = True
        with contextlib.suppress(RuntimeError):  # it has just ended
            self._interrupt()
        self._stop_members()
        self._threads.shutdown()
        self._stop_members()  # one that a thread was just starting
        self.keep(0)

    def _stop_members(self) -> None:
        with ThreadPoolExecutor(len(self.members)) as threads:
            list(threads.map(Member.stop, self.members))

    # Bringing up

    def _bring_up(self, member: Member) -> None:
        while True:
            try:
                self._renew(member)
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

    def _renew(self, member: Member) -> None:
        """Bring it up, examine it, and give it the newest weights. Raises ServerFault, and UserError if it does not fit."""
        if member.launch:
            if member.process and (member.suspect or (member.engine and not member.server.is_well())):
                member.process.stop()
            if not (member.process and member.process.alive()):
                self._start(member, member.launch)
        member.server.wait_until_up(self._patience(member), lambda: self._hopeless(member))
        member.engine = member.engine or self.examine(member.server)
        if self.version is not None and member.server.weight_version() != self.version:
            self._deliver(member.server, self.version)
            self.check.compare(member.name, lambda: member.server.call_workers("weight_sums"))
        member.ready = member.met = True

    def _deliver(self, server: Server, version: str) -> None:
        path = self.files[-1]
        try:
            server.update({"path": str(path), "names": self.names}, version)
        except ServerFault as fault:
            raise type(fault)(
                f"it did not load the weights in {path}, which it must see under this path (rollout.transfer_folder): {fault}"
            ) from fault

    def _start(self, member: Member, launch: Callable[[], LocalProcess]) -> None:
        if self._closed:
            raise ServerFault("the run is over")
        if member.process:
            member.process.stop()  # what is left of its process group
            self.counts["restarts"] += 1
        member.process = launch()
        _log.info("%s is starting, which takes about a minute. Its log: %s", member.title, member.process.log)
        member.server = Server(member.process.address, timeout=self.options.request_timeout)
        member.engine, member.suspect = None, False

    def _patience(self, member: Member) -> float:
        """Return the seconds until it must be up. Only what is started here, or is the last server, is waited for."""
        if member.launch or (member.met and self.live == [member]):
            return self.options.start_timeout
        return 0.0 if member.met else PROBE

    def _hopeless(self, member: Member) -> str | None:
        if self._closed:
            return "the run is over"
        return "its process ended" if member.process and not member.process.alive() else None

    def _failed(self, member: Member, fault: ServerFault) -> None:
        """Note the fault. Return if the server is to be tried again, or drop it. Raises UserError if it is the last one."""
        with self._lock:
            member.ready = False
            member.faults += 1
            self.counts["faults"] += 1
            member.suspect = isinstance(fault, ServerHung) or member.faults > 1
            if not member.launch:
                member.engine = None  # another one may answer at its address next time
            if self._closed:
                raise UserError(CLOSED) from fault
            if not member.met:
                raise UserError(member.given_up(fault)) from fault
            if member.faults <= self.options.retries and not isinstance(fault, ServerAway):
                _log.warning("%s failed (%s). Its groups are requested again, there or elsewhere.", member.name, fault)
            elif self.live == [member]:
                raise UserError(f"{member.given_up(fault)}\n{RESUME}") from fault
            else:
                member.dropped = True
                _log.warning("%s The other servers continue without it.", member.given_up(fault))

    # A rollout

    async def _sample(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> list[list[Completion]]:
        job, loop, task = _Job(requests, on_done), asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._interrupt = lambda: loop.call_soon_threadsafe(task.cancel)
        work = asyncio.gather(*(self._drive(member, job) for member in self.live))
        try:
            await asyncio.wait([job.done, work], return_when=asyncio.FIRST_COMPLETED)
            if not job.done.done():
                await work  # it raises: as long as groups are missing, the last server is not dropped
            return job.groups
        finally:
            self._interrupt = lambda: None
            work.cancel()
            self.counts["regenerated"] += job.requested.total() - len(job.requested)

    async def _drive(self, member: Member, job: "_Job") -> None:
        """Take groups from one server until it is dropped."""
        while True:
            try:
                if not member.ready:
                    await asyncio.to_thread(self._renew, member)
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
        self.n = max(sampling["n"] for _, sampling in requests)
        self.groups: list[Any] = [None] * len(requests)
        self.missing = set(range(len(requests)))
        self.requested: Counter[int] = Counter()  # times, by place
        self.done = asyncio.get_running_loop().create_future()
        self.queue: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for place in self.missing:
            self.queue.put_nowait(place)

    def finish(self, place: int, group: list[Completion]) -> None:
        self.groups[place] = group
        self.missing.remove(place)
        self.on_done(place)
        if not self.missing:
            self.done.set_result(None)
