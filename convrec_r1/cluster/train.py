"""Run a task in several processes under Ray Train, with Lightning.

Ray Train V2 (RAY_TRAIN_V2_ENABLED=1, Ray's default since 2.51): it runs without Ray Tune, and restarts the group of processes
in place. V1 runs the group as a trial of Tune, is deprecated, and would write a second set of results and checkpoints.

Checkpoints are ours (run/checkpoints.py), not Ray's: a restarted group starts the same task in the same folder, which resumes.
"""

import contextlib
import io
import logging
import os
import pickle
import secrets
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrec_r1.base import progress
from convrec_r1.base.errors import UserError
from convrec_r1.base.signals import Interrupted, stop
from convrec_r1.cluster.config import ClusterConfig
from convrec_r1.cluster.connect import Bundle, Connection
from convrec_r1.cluster.desk import Death, Desk, End, News

_log = logging.getLogger(__name__)

SCRATCH = ".ray_train"
"""Folder in the run's folder for a token, and for what Ray Train insists on writing. Removed at the end."""
POLL = 0.3
"""Seconds between questions to the desk."""
SEEN_WITHIN = 10.0
"""Seconds until a file that another machine wrote must be visible on a shared file system."""
CARRIED = ("CONVREC_R1_", "HF_", "TRANSFORMERS_", "WANDB_", "OPENAI_", "NCCL_", "GLOO_", "CUBLAS_")
"""Beginnings of environment variables that training processes get where their node does not set them."""
SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a config are relative to the command's folder
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
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
            return [Bundle(self.devices * cpus, self.devices * self.gpu, f"{self.devices} training processes on a node")]
        return [Bundle(cpus, float(self.gpu), "training process")] * self.world

    @property
    def placement(self) -> str:
        """Ray's placement strategy."""
        return "STRICT_PACK" if self.nodes == 1 else "STRICT_SPREAD" if self.devices == 1 else "PACK"


@dataclass(frozen=True)
class _Given:
    """What a training process needs before it imports anything of the task."""

    desk: Any
    folder: str
    """The command's working folder."""
    path: list[str]
    """sys.path of the command."""
    environment: dict[str, str]
    token: tuple[str, str]
    """A file that the command wrote, and its content."""
    threads: int
    job: bytes
    """The pickled task."""


def inside() -> bool:
    """Return whether this process is one of a group that Ray Train started. Does not import Ray."""
    return _inside


_inside = False


def device() -> Any:
    """Return the torch.device that Ray gave this process of a group."""
    from ray.train.torch import get_device

    return get_device()


def lightning(strategy: str, sharded: type[Any], **sharding: Any) -> tuple[Any, Any]:
    """Return Lightning's strategy and its environment plugin for the processes of Ray Train's group.

    Args:
        strategy: `trainer.strategy`.
        sharded: class of the strategy for fsdp.
        sharding: options of that class.
    """
    from ray.train.lightning import RayDDPStrategy, RayFSDPStrategy, RayLightningEnvironment

    if strategy == "fsdp":
        return type(sharded.__name__, (sharded, RayFSDPStrategy), {})(**sharding), RayLightningEnvironment()
    return RayDDPStrategy(), RayLightningEnvironment()


def run(
    job: Callable[[], dict[str, Any]], group: Group, cluster: ClusterConfig, connection: Connection, *, folder: Path, within: float
) -> dict[str, Any]:
    """Call `job` in each process of a group under Ray Train. Return what the first process returns.

    A process that dies restarts the group, `cluster.retries` times. A signal of this process reaches the group after its step.

    Args:
        job: can be pickled. It resumes what an earlier call in `folder` began.
        group: the processes.
        cluster: options.
        connection: the cluster.
        folder: the run's folder, on storage that all nodes share.
        within: seconds that a step may take after a signal.
    Raises:
        UserError: raised by the job; or too few CPUs or GPUs; or the group died too often.
        Interrupted: after a signal.
    """
    import ray

    connection.require(group.bundles(cluster.trainer_cpus))
    scratch = folder.absolute() / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    desk = ray.remote(num_cpus=0, max_restarts=0)(Desk).options(scheduling_strategy=_here()).remote(cluster.retries)
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
        watcher.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _given(job: Callable[[], Any], desk: Any, scratch: Path, cluster: ClusterConfig) -> _Given:
    from ray import cloudpickle

    token = (str(scratch / "token"), secrets.token_hex(16))
    Path(token[0]).write_text(token[1], encoding="utf-8")
    carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    return _Given(desk, os.getcwd(), list(sys.path), carried, token, cluster.trainer_cpus, cloudpickle.dumps(job))


def _here() -> Any:
    """Return the scheduling strategy of actors that live and die with this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _fit(given: _Given, group: Group, cluster: ClusterConfig, scratch: Path, desk: Any) -> None:
    """Run the group to its end, with restarts."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        _process,
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
    from ray.train import UserCallback
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    class Report(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            import ray

            lost = any(isinstance(e, (ray.exceptions.RayError, WorkerHealthCheckFailedError)) for e in worker_exceptions.values())
            reasons = {rank: f"{type(e).__name__}: {e}" for rank, e in worker_exceptions.items()}
            ray.get(desk.died.remote(Death(reasons, lost)))

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
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, fit: Callable[[], None]) -> None:
        for target in (lambda: self._fit(fit), self._listen):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the thread that listens. The other ends when the connection is closed."""
        self._stopped.set()
        if len(self._threads) > 1:
            self._threads[1].join(5)

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
            last = self.finished.is_set() or self._stopped.wait(POLL)
            try:
                news = ray.get(self.desk.news.remote(stop.number or 0))
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
        elif defers and not news.deferring and stop.number is None:
            stop.go_on()
        defers = news.deferring
    stop.go_on()
    watcher._threads[1].join()
    return watcher.news.end


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
    if not deaths:
        return UserError(f"Ray Train could not start the training processes: {watcher.error}")
    last = deaths[-1]
    text = "\n".join(f"  process {rank}: {reason}" for rank, reason in sorted(last.reasons.items()))
    if not last.lost:
        return RuntimeError(f"in the training processes:\n{text}")
    times = f"{len(deaths)} time{'s' if len(deaths) > 1 else ''}"
    return UserError(
        f"Training processes died {times}, more often than cluster.retries={cluster.retries} allows. The last time:\n{text}\n"
        "The same command resumes from the last checkpoint."
    )


# -- in a training process -------------------------------------------------------------------------------------------------


def _process(config: dict[str, Any]) -> None:
    """Run the job in this process of the group, and report its end."""
    import ray

    global _inside
    given: _Given = config["given"]
    ended, death, restarts = ray.get(given.desk.begin.remote())
    if ended:  # the group restarted because another process raised what ended the run
        return
    _inside = True
    rank = ray.train.get_context().get_world_rank()
    progress.console.file = _Lines(given.desk)
    for name, value in given.environment.items():
        os.environ.setdefault(name, value)
    sys.path += [entry for entry in given.path if entry not in sys.path]
    try:
        _share(given)
        import torch

        torch.set_num_threads(given.threads)
        job = pickle.loads(given.job)
        if death and rank == 0:
            _log_restart(death, restarts)
        with _signals(given.desk) if rank == 0 else contextlib.nullcontext():
            value = job()
        if rank == 0:
            ray.get(given.desk.end.remote(End.done, value))
    except UserError as error:
        ray.get(given.desk.end.remote(End.wrong, str(error)))
        raise
    except Interrupted as error:
        ray.get(given.desk.end.remote(End.interrupted, (error.number, str(error))))
    except Exception as error:
        # With its trace in the message: Ray Train passes on the exception without it.
        raise RuntimeError(f"{error}\n{traceback.format_exc()}") from None
    finally:
        progress.console.file.flush()


def _share(given: _Given) -> None:
    """Change to the command's folder. Raise a UserError if this node does not see what the command wrote."""
    file, content = Path(given.token[0]), given.token[1]
    end = time.monotonic() + SEEN_WITHIN
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.2)
    seen = file.read_text(encoding="utf-8") if file.exists() else None
    if seen != content or not Path(given.folder).is_dir():
        missing = given.folder if seen == content else file.parents[1]
        raise UserError(
            f"The node {socket.gethostname()} does not see {missing} of the machine on which the command runs. Training on "
            "several nodes needs a file system that all of them share, under the same path: outputs=DIR on it, and the command "
            "started from a folder on it."
        )
    os.chdir(given.folder)


def _log_restart(death: Death, restarts: int) -> None:
    reasons = "; ".join(f"process {rank}: {reason.splitlines()[0][:200]}" for rank, reason in sorted(death.reasons.items()))
    _log.warning("Training restarts (%d) from the newest checkpoint: %s", restarts, reasons)


@contextlib.contextmanager
def _signals(desk: Any) -> Iterator[None]:
    """Fetch signals from the command's process while the block runs."""
    import ray

    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(POLL):
            number = ray.get(desk.poll.remote(stop.deferring))
            if number:
                stop.number = number

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Lines(io.TextIOBase):
    """A file that sends whole lines to the desk."""

    def __init__(self, desk: Any) -> None:
        self._desk, self._rest = desk, ""
        self._lock = threading.Lock()

    def write(self, text: str, /) -> int:
        with self._lock:
            whole, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._desk.say.remote(whole + newline)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is sent when it is whole."""

    def writable(self) -> bool:
        return True


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
