"""Run a task in several processes under Ray Train, with Lightning.

Ray Train V2 (RAY_TRAIN_V2_ENABLED=1, Ray's default since 2.51): it runs without Ray Tune, and restarts the group of processes
in place. V1 runs the group as a trial of Tune, is deprecated, and would write a second set of results and checkpoints.

Checkpoints are ours (run/checkpoints.py), not Ray's: a restarted group starts the same task in the same folder, which resumes.
"""

import contextlib
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base import progress
from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import Interrupted, stop
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import first_line
from convrec_r1.cluster.desk import Death, Desk, End, News
from convrec_r1.cluster.places import only_on
from convrec_r1.cluster.process import POLL, Given, process
from convrec_r1.cluster.resources import Bundle

SCRATCH = ".ray_train"
"""Folder in the run's folder for a token, and for what Ray Train insists on writing. Removed at the end."""
CARRIED = ("CONVREC_R1_", "HF_", "TRANSFORMERS_", "WANDB_", "OPENAI_", "NCCL_", "GLOO_", "CUBLAS_")
"""Beginnings of environment variables that training processes get where their node does not set them."""
SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a config are relative to the command's folder
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that would tell of nodes about to leave; nobody here asks
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default: each run would end so much later
}
"""Environment of the command's process while Ray Train runs."""


@dataclass(frozen=True)
class Group:
    """The training processes that are asked for."""

    devices: int
    """Processes on a node."""
    nodes: int
    gpu: bool
    """One GPU for each process."""

    @property
    def world(self) -> int:
        return self.devices * self.nodes

    def bundles(self, cpus: int) -> list[Bundle]:
        """Return what has to fit into the cluster: the processes of a node together, if there is one node."""
        if self.nodes == 1 and self.devices > 1:
            return [
                Bundle(self.devices * cpus, self.devices * self.gpu, f"{self.devices} training processes on a node")
            ]
        return [Bundle(cpus, float(self.gpu), "training process")] * self.world

    @property
    def placement(self) -> str:
        """Ray's placement strategy."""
        return "STRICT_PACK" if self.nodes == 1 else "STRICT_SPREAD" if self.devices == 1 else "PACK"


def run(
    job: Callable[[list[str]], dict[str, Any]],
    group: Group,
    cluster: ClusterConfig,
    *,
    folder: Path,
    within: float,
) -> dict[str, Any]:
    """Call `job` in each process of a group under Ray Train. Return what the first process returns. Ray must be connected.

    A process that dies restarts the group, `cluster.retries` times. A signal of this process reaches the group after its step.

    Args:
        job: can be pickled. It resumes what an earlier call in `folder` began. It gets sentences for the log.
        group: the processes.
        cluster: options.
        folder: the run's folder, on storage that all nodes share.
        within: seconds that a step may take after a signal.
    Raises:
        UserError: raised by the job; or the group died too often.
        Interrupted: after a signal.
    """
    import ray

    scratch = folder.absolute() / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=0)(Desk)
    # It lives and dies with this process's node.
    desk = actor.options(scheduling_strategy=only_on()).remote(cluster.retries)
    watcher = _Watcher(desk)
    try:
        given = _given(job, desk, scratch, cluster)
        with _environment(SETTINGS):
            watcher.start(lambda: _fit(given, group, cluster, scratch, desk))
            end = _wait(watcher, within)
        if end is None:
            raise _failure(watcher, ray.get(desk.deaths.remote()), cluster)
        return _outcome(*end)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _given(job: Callable[[list[str]], Any], desk: Any, scratch: Path, cluster: ClusterConfig) -> Given:
    from ray.cloudpickle import dumps  # pyright: ignore[reportAttributeAccessIssue]

    token = (str(scratch / "token"), secrets.token_hex(16))
    Path(token[0]).write_text(token[1], encoding="utf-8")
    carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    return Given(desk, os.getcwd(), list(sys.path), carried, token, cluster.trainer_cpus, dumps(job))


def _fit(given: Given, group: Group, cluster: ClusterConfig, scratch: Path, desk: Any) -> None:
    """Run the group to its end, with restarts."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        process,
        train_loop_config={"given": given},
        torch_config=TorchConfig(backend="nccl" if group.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=group.world,
            use_gpu=group.gpu,
            resources_per_worker={"CPU": cluster.trainer_cpus, **({"GPU": 1} if group.gpu else {})},
            placement_strategy=group.placement,
        ),
        run_config=RunConfig(
            name="group",
            storage_path=str(scratch),
            # Also for groups that cannot start, which Ray would try for ever: each try takes a minute.
            failure_config=FailureConfig(max_failures=cluster.retries, controller_failure_limit=cluster.retries),
            callbacks=[_deaths(desk)],
        ),
    ).fit()


def _deaths(desk: Any) -> Any:
    """Return a callback of Ray Train's controller that reports to the desk why a group ended."""
    import ray
    from ray.exceptions import ActorDiedError, RayError
    from ray.train import UserCallback
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    def cause(error: Exception) -> Exception:
        return error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error

    def reason(error: Exception) -> str:
        if not isinstance(error, ActorDiedError):
            return f"{type(error).__name__}: {error}"
        lines = [line.strip() for line in str(error).splitlines()]
        where = [line for line in lines if line.startswith(("pid:", "ip:"))]
        detail = lines[-1].partition(" Some common causes")[0] if lines else ""
        return f"died ({', '.join(where)}). {detail}"

    class Report(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes = {rank: cause(error) for rank, error in worker_exceptions.items()}
            lost = any(isinstance(error, RayError) for error in causes.values())
            ray.get(desk.died.remote(Death({rank: reason(error) for rank, error in causes.items()}, lost)))

    return Report()


class _Watcher:
    """Two threads of the command's process: one waits for Ray Train, one for news. The main thread stays free for signals.

    Python runs a signal's handler in the main thread, and an exception from one is lost inside of Ray's calls.
    """

    def __init__(self, desk: Any) -> None:
        self.desk = desk
        self.news = News()
        self.error: BaseException | None = None
        """Of Ray Train."""
        self.finished = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def start(self, fit: Callable[[], None]) -> None:
        """Start both. fit: returns when Ray Train has ended."""
        threading.Thread(target=self._fit, args=(fit,), daemon=True).start()
        self._listener.start()

    def last(self) -> News:
        """Return the last news, after the group has ended."""
        self._listener.join()
        return self.news

    def _fit(self, fit: Callable[[], None]) -> None:
        try:
            fit()
        except BaseException as error:
            self.error = error
        finally:
            self.finished.set()

    def _listen(self) -> None:
        import ray

        last = False
        while not last:
            last = self.finished.wait(POLL)
            try:
                news: Any = ray.get(self.desk.news.remote(stop.number or 0))
            except Exception:  # the connection was closed, or Ray died, which the other thread sees as well
                return
            if news.text:
                progress.console.file.write(news.text)
                progress.console.file.flush()
            self.news = news


def _wait(watcher: _Watcher, within: float) -> tuple[End, Any] | None:
    """Wait for the end of the group, and return it. None: the group ended without one.

    Raises:
        Interrupted: a signal arrived while nothing was trained, or the step did not end in time.
    """
    defers = False
    while not watcher.finished.wait(0.1):
        news = watcher.news
        if news.end is not None and news.end[0] in (End.wrong, End.fault):
            return news.end  # other processes may wait for the one that failed
        if news.deferring and not defers:
            stop.wait_for_step(within)
        elif defers and not news.deferring:
            stop.go_on()
        defers = news.deferring
    stop.go_on()
    return watcher.last().end


def _outcome(how: End, value: Any) -> dict[str, Any]:
    if how is End.wrong:
        raise UserError(value)
    if how is End.interrupted:
        raise Interrupted(*value)
    if how is End.fault:
        raise RuntimeError(f"in a training process:\n{value}")
    return value


def _failure(watcher: _Watcher, deaths: list[Death], cluster: ClusterConfig) -> Exception:
    """Return the error of a group that ended without a result."""
    from ray.train import ControllerError

    if isinstance(watcher.error, ControllerError) or not deaths:
        error: Any = watcher.error
        why = first_line(getattr(error, "controller_failure", error))
        return UserError(f"Ray could not start the training processes (tried {cluster.retries + 1} times): {why}")
    last = deaths[-1]
    text = "\n".join(f"  process {rank}: {reason}" for rank, reason in sorted(last.reasons.items()))
    if not last.lost:
        return RuntimeError(f"in the training processes:\n{text}")
    times = f"{len(deaths)} time{'s' if len(deaths) > 1 else ''}"
    return UserError(
        f"Training processes died {times}, more often than cluster.retries={cluster.retries} allows. The last time:\n{text}\n"
        "The same command resumes from the last checkpoint."
    )


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
