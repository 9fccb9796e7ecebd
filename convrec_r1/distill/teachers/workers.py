"""teacher.workers: a model that several Ray actors serve, on any nodes."""

# Ray is optional.
# pyright: reportMissingImports=none

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.cluster.resources import Bundle
from convrec_r1.distill.config import VLLMTeacherConfig
from convrec_r1.distill.teachers.base import Answer, NoAnswer, Question
from convrec_r1.distill.teachers.server import ModelServer
from convrec_r1.rollout.config import vllm_for_gpus

_log = logging.getLogger(__name__)

_DEATHS = 2
"""Actors that are replaced, for each one that is asked for."""
_PLACED = 60.0
"""Seconds for Ray to place an actor, beside `teacher.start_timeout` for its server."""
_CLOSED = 30.0
"""Seconds for a server to stop."""


@dataclass(eq=False)
class _Worker:
    """The pool's side of an actor."""

    actor: Any
    up: bool = False
    """Whether its server answers."""
    asked: int = 0
    """Questions that it is answering."""


class ServerPool:
    """Actors of Ray with a `ModelServer` each. A question goes to the one with the fewest. Ray must be connected.

    They start at the first question, which the first one that is up answers. A question of an actor that dies is asked again,
    of another. An actor that died with its process or node is replaced where there is room; one whose server failed for good
    is not. The pool goes on with those that are left.
    """

    def __init__(self, options: VLLMTeacherConfig, kind: type[ModelServer] = ModelServer) -> None:
        """kind: class of the actors."""
        folder = Path(str(options.model)).expanduser()
        # An actor works in another folder than this process.
        self.cfg = replace(options, model=str(folder.absolute())) if folder.is_dir() else options
        self.kind = kind
        self._workers: list[_Worker] = []
        self._starts: set[asyncio.Task[None]] = set()
        self._deaths = 0
        self._fault: str | None = None
        """What the last actor that failed for good said."""
        self._changed = asyncio.Event()

    async def answer(self, question: Question) -> Answer:
        from ray.exceptions import RayActorError, RayTaskError

        worker = await self._least_busy()
        worker.asked += 1
        try:
            return await worker.actor.answer.remote(question)
        except RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise error.cause from None
            self._failed(worker, str(error.cause))
            raise NoAnswer("server failed", str(error.cause)) from None
        except RayActorError as error:
            self._died(worker, error)
            raise NoAnswer("server died", f"a worker of {self.cfg.model} ended") from None
        finally:
            worker.asked -= 1

    async def close(self) -> None:
        import ray

        for task in self._starts:
            task.cancel()
        workers, self._workers = self._workers, []
        closing = [worker.actor.close.remote() for worker in workers]
        if closing:
            await asyncio.to_thread(ray.wait, closing, num_returns=len(closing), timeout=_CLOSED)
        for worker in workers:
            ray.kill(worker.actor)
        self._deaths, self._fault = 0, None

    async def _least_busy(self) -> _Worker:
        """Return the worker that is up with the fewest questions. Raises UserError if there is none, and none to wait for."""
        if not self._workers and self._fault is None:
            _log.info("Starting %d servers of %s, which takes a minute or more", self.cfg.workers, self.cfg.model)
            for _ in range(self.cfg.workers):
                self._launch()
        while not (up := [worker for worker in self._workers if worker.up]):
            if not self._workers:
                raise UserError(f"No server of teacher.model={self.cfg.model} is left. The last one: {self._fault}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self.cfg.start_timeout + _PLACED)
            except TimeoutError:
                raise UserError(
                    f"No server of teacher.model={self.cfg.model} came up within {self.cfg.start_timeout + _PLACED:g} s: the "
                    "cluster has no room for it, or teacher.start_timeout is too short."
                ) from None
        return min(up, key=lambda worker: worker.asked)

    def _launch(self) -> None:
        import ray

        needed, kind = of_server(self.cfg), ray.remote(self.kind)
        limits = {
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": self.cfg.concurrency + 2,
        }  # and start, close
        actor = kind.options(num_cpus=needed.cpus, num_gpus=needed.gpus, **limits).remote(self.cfg)
        self._workers.append(worker := _Worker(actor))
        task = asyncio.create_task(self._start(worker))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _start(self, worker: _Worker) -> None:
        from ray.exceptions import RayActorError, RayTaskError

        try:
            await worker.actor.start.remote()
            worker.up = True
            self._changed.set()
        except RayTaskError as error:
            self._failed(worker, str(error.cause))
        except RayActorError as error:
            self._died(worker, error)

    def _died(self, worker: _Worker, error: Exception) -> None:
        """Replace a worker whose process is gone, unless too many are."""
        if worker not in self._workers:
            return
        self._deaths += 1
        if self._deaths > _DEATHS * self.cfg.workers:
            self._failed(worker, str(error))
        else:
            _log.warning("A worker of teacher.model=%s died. Another one is asked for.", self.cfg.model)
            self._workers.remove(worker)
            self._launch()

    def _failed(self, worker: _Worker, why: str) -> None:
        """Go on without a worker."""
        import ray

        if worker in self._workers:
            self._workers.remove(worker)
            ray.kill(worker.actor)
            self._fault = why
            _log.warning(
                "A worker of teacher.model=%s failed, %d are left: %s", self.cfg.model, len(self._workers), why
            )
            self._changed.set()


def of_server(cfg: VLLMTeacherConfig) -> Bundle:
    """Return the CPUs and GPUs of one worker."""
    return Bundle(1, cfg.tensor_parallel_size if vllm_for_gpus() else 0, "server of the teacher (teacher.workers)")
