"""Deal bundles out to workers as they become free; replace workers that fail.

One thread owns all state. Everything that happens reaches it as a call in a queue: an order, an answer, the end of a worker.
A bundle of a worker that dies, hangs or raises is dealt again, to any worker, with the weights that it names.
"""

# Ray is optional.
# pyright: reportMissingImports=none

import logging
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.rollout.base import Completion
from convrec_r1.rollout.checksums import SyncError
from convrec_r1.rollout.workers.bundles import Packed, Request, unpack
from convrec_r1.rollout.workers.nodes import end_process, last_words
from convrec_r1.rollout.workers.weights import Version
from convrec_r1.rollout.workers.worker import Identity

_log = logging.getLogger(__name__)
RESUME = "The same command resumes from the last checkpoint."


@dataclass(eq=False)
class Bundle:
    """Groups that one worker samples, and the weights that they are sampled from."""

    places: Sequence[int]
    """Of its groups in the job."""
    request: Request
    version: Version
    job: "Job"
    failures: int = 0


class Job(Future[list[list[Completion]]]):
    """Groups that were ordered together. The result is all of them, in order."""

    def __init__(self, total: int, on_done: Callable[[Sequence[int]], None] = lambda places: None) -> None:
        """on_done: called in the pool's thread with the places of groups as they arrive."""
        super().__init__()
        self.groups: list[Any] = [None] * total
        self.missing, self.on_done = total, on_done
        if not total:
            self.set_result([])

    def finish(self, places: Sequence[int], groups: Sequence[list[Completion]]) -> None:
        for place, group in zip(places, groups, strict=True):
            self.groups[place] = group
        self.missing -= len(places)
        self.on_done(places)
        if not self.missing:
            self.set_result(self.groups)


@dataclass(eq=False)
class Worker:
    """The pool's side of an actor."""

    number: int
    actor: Any
    identity: Identity | None = None
    """None: it has not started."""
    bundle: Bundle | None = None
    deadline: float = 0.0
    """Time at which the bundle must be there."""
    gone: bool = False

    def __str__(self) -> str:
        where = f" (process {self.identity.pid} on {self.identity.host})" if self.identity else ""
        return f"Rollout worker {self.number}{where}"


@dataclass
class Pool:
    """Workers of a run: `size` as long as the cluster has room and none fails too often."""

    launch: Callable[[], tuple[Any, Any]]
    """Starts an actor with the methods of `RolloutWorker`. Returns it and the reference to its `Identity`."""
    size: int
    retries: int
    """Times that a bundle is dealt again, and that a worker which did not start is replaced."""
    timeout: float
    """Seconds until a bundle must be sampled; also until there must be any worker."""
    counts: Counter[str] = field(default_factory=Counter)
    """restarts of workers, faults, groups regenerated."""

    def __post_init__(self) -> None:
        self.workers: list[Worker] = []
        self.format: Future[Identity] = Future()
        """Resolved by the first worker that has started: all take weights as it does."""
        self._waiting: deque[Bundle] = deque()
        self._events: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._number = self._start_faults = 0
        self._broken: Exception | None = None
        self._alone_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="rollout-pool", daemon=True)
        self._thread.start()
        for _ in range(self.size):
            self._events.put(self._ask)

    @property
    def live(self) -> int:
        """Workers that have started and not ended."""
        return sum(worker.identity is not None for worker in tuple(self.workers))

    def submit(self, bundles: Sequence[Bundle]) -> None:
        """Sample bundles, in this order, after those that wait already."""
        self._events.put(lambda: self._waiting.extend(bundles))

    def drop(self, job: Job) -> None:
        """Do not sample what is left of a job."""
        self._events.put(job.cancel)

    def close(self) -> None:
        """End the workers. Jobs that are not finished fail."""
        self._events.put(None)
        self._thread.join()

    # What follows runs in the pool's thread.

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._patience())
            except queue.Empty:
                event = self._overdue
            if event is None:
                break
            try:
                event()
                self._deal()
            except Exception as error:  # nobody waits for this thread: those who wait for jobs must learn of it
                _log.debug("The pool of rollout workers failed", exc_info=True)
                self._break(error)
        for worker in self.workers:
            self._end(worker)
        self.workers = []
        self._break(UserError("The rollout workers were closed."))

    def _patience(self) -> float | None:
        """Return the seconds until something is overdue. None: nothing can be."""
        deadlines = [worker.deadline for worker in self.workers if worker.bundle]
        if not self.live and (self._waiting or not self.format.done()) and self._broken is None:
            deadlines.append(self._alone_since + self.timeout)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _overdue(self) -> None:
        now = time.monotonic()
        for worker in [w for w in self.workers if w.bundle and w.deadline <= now]:
            end_process(worker.identity)
            self._failed(worker, TimeoutError(f"no answer within {self.timeout:g} s (rollout.timeout)"))
        if not self.live and (self._waiting or not self.format.done()) and now >= self._alone_since + self.timeout:
            self._break(
                UserError(
                    f"No rollout worker has started within {self.timeout:g} s (rollout.timeout): the cluster has no room, or a "
                    f"worker takes longer. {RESUME}"
                )
            )

    def _deal(self) -> None:
        """Give waiting bundles to free workers."""
        if self._broken is not None:
            waiting, self._waiting = self._waiting, deque()
            for bundle in waiting:
                self._fail(bundle.job, self._broken)
        for worker in self.workers:
            if worker.identity is None or worker.bundle is not None:
                continue
            while self._waiting and self._waiting[0].job.done():  # it has failed, or nobody wants it any more
                self._waiting.popleft()
            if not self._waiting:
                return
            worker.bundle = bundle = self._waiting.popleft()
            worker.deadline = time.monotonic() + self.timeout
            self._call(worker, worker.actor.sample.remote(bundle.version, bundle.request), self._sampled)

    def _call(self, worker: Worker, ref: Any, then: Callable[[Worker, Future], None]) -> None:
        ref.future().add_done_callback(lambda future: self._events.put(partial(then, worker, future)))

    def _ask(self) -> None:
        """Ask for a worker. Ray places it when there is room."""
        self._number += 1
        actor, ready = self.launch()
        worker = Worker(self._number, actor)
        self.workers.append(worker)
        self._call(worker, ready, self._started)

    def _started(self, worker: Worker, future: Future) -> None:
        if worker.gone:
            return
        if (error := future.exception()) is not None:
            if isinstance(cause := _cause(error), UserError) and not self.format.done():
                raise cause  # the next one would say the same
            self._failed(worker, error)
            return
        identity = future.result()
        if not self.format.done():
            self.format.set_result(identity)
        first = self.format.result()
        if (first.dtype, first.tied) != (identity.dtype, identity.tied):
            raise UserError(
                f"All rollout workers must take the same weights. On {first.host}: {first.dtype}, tied {first.tied}; on "
                f"{identity.host}: {identity.dtype}, tied {identity.tied}. Set rollout.dtype, or use nodes of one kind."
            )
        worker.identity, self._start_faults = identity, 0
        _log.debug("%s has started", worker)

    def _sampled(self, worker: Worker, future: Future) -> None:
        if worker.gone:
            return
        bundle = worker.bundle
        assert bundle is not None
        if (error := future.exception()) is not None:
            if isinstance(cause := _cause(error), UserError | SyncError):  # a retry gives the same
                worker.bundle = None
                self._fail(bundle.job, cause)
                if isinstance(cause, SyncError):
                    self._break(cause)
            else:
                self._failed(worker, error)
            return
        packed: Packed = future.result()
        worker.bundle = None
        if not bundle.job.done():
            bundle.job.finish(bundle.places, unpack(packed, bundle.request.sampling.n))

    def _failed(self, worker: Worker, error: BaseException) -> None:
        """Take a worker out, deal its bundle again, and ask for another worker."""
        bundle, worker.bundle = worker.bundle, None
        self._end(worker)
        self.workers.remove(worker)
        self.counts["faults"] += 1
        why = f"{worker} failed: {_reason(error)}{last_words(worker.identity)}"
        again = "Its groups are sampled again, there or elsewhere. " if bundle else ""
        if not self.live:
            self._alone_since = time.monotonic()
        if bundle is None and worker.identity is None:
            self._start_faults += 1
        if bundle is not None and not bundle.job.done():
            bundle.failures += 1
            self.counts["regenerated"] += len(bundle.places)
            if bundle.failures > self.retries:
                tried = f"Groups of a rollout failed {bundle.failures} times (rollout.retries={self.retries})."
                self._fail(bundle.job, UserError(f"{tried} {why}\n{RESUME}"))
            else:
                self._waiting.appendleft(bundle)
        if self._start_faults <= self.retries:
            _log.warning("%s\n%sAnother worker is asked for.", why, again)
            self.counts["restarts"] += 1
            self._ask()
        elif self.workers:
            _log.warning("%s\n%sNo other is asked for: too many did not start (rollout.retries).", why, again)
        else:
            self._break(UserError(f"No rollout worker is left. {why}\n{RESUME}"))

    def _end(self, worker: Worker) -> None:
        import ray

        worker.gone = True
        ray.kill(worker.actor)

    def _break(self, error: Exception) -> None:
        """Fail all jobs, now and from now on."""
        self._broken = self._broken or error
        if not self.format.done():
            self.format.set_exception(error)
        waiting, self._waiting = self._waiting, deque()
        for bundle in [*waiting, *(w.bundle for w in self.workers if w.bundle)]:
            self._fail(bundle.job, error)

    @staticmethod
    def _fail(job: Job, error: BaseException) -> None:
        if not job.done():
            job.set_exception(error)


def _cause(error: BaseException) -> BaseException:
    """Return what a worker raised, without what Ray wraps it in. Another error as it is."""
    return getattr(error, "cause", None) or error


def _reason(error: BaseException) -> str:
    """Return an error as text: its end, if it is long, where the cause stands."""
    cause = _cause(error)
    text = re.sub(r"\x1b\[\d*m", "", str(cause)).strip()
    return f"{type(cause).__name__}: {text[-1500:]}" if text else type(cause).__name__
