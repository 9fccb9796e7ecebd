"""What runs in a rollout worker's process: an engine of its own, and the weights that it samples from."""

# Ray is optional.
# pyright: reportMissingImports=none

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convrec_r1.rollout.base import RolloutEngine, make_engine
from convrec_r1.rollout.checksums import require_same
from convrec_r1.rollout.config import RolloutConfig
from convrec_r1.rollout.workers.bundles import Packed, Request, pack
from convrec_r1.rollout.workers.weights import Version, read

if TYPE_CHECKING:
    from convrec_r1.policy import Policy
    from convrec_r1.rollout.constraint import Constraint


@dataclass(frozen=True)
class Identity:
    """Where a worker runs, and how its engine takes weights."""

    node: str
    """Ray's id of the node."""
    host: str
    pid: int
    log: str | None
    """File that the process writes its errors to, on its node."""
    dtype: str | None
    """dtype of the weights that it takes. None: as in the policy."""
    tied: bool
    """Whether a head that shares its weights with the embeddings is left out."""


class RolloutWorker:
    """Made an actor by the engine. It ends with the process that started it."""

    engine: RolloutEngine
    device: str

    def __init__(self, rollout: RolloutConfig, max_length: int, threads: int, path: Sequence[str]) -> None:
        """
        Args:
            rollout: options of the engine.
            max_length: upper limit of prompt and completion together, in tokens.
            threads: of torch, on CPUs.
            path: where the run's process finds modules: a user's engine may be there.
        """
        sys.path += [entry for entry in path if entry not in sys.path]
        self.rollout, self.max_length, self.threads = rollout, max_length, threads
        self.version: int | None = None

    def ready(self, bare: "Policy", constraint: "Constraint | None" = None) -> Identity:
        """Build and start the engine, which samples from `bare`, a `policy.skeleton`. constraint: that openings refer to."""
        import ray
        import torch

        from convrec_r1.policy.skeleton import place

        torch.set_num_threads(self.threads)
        self.as_trainer = not getattr(self.rollout.engine, "own_weights", True)
        """Whether the engine computes with the policy object itself, with the trainer's arithmetic."""
        if self.as_trainer:
            place(bare, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.device = bare.newline.device.type
        self.engine = make_engine(self.rollout, bare, max_length=self.max_length, constraint=constraint)
        form = getattr(self.engine, "weight_format", None)
        dtype, tied = form() if form else (None, True)
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        node = ray.get_runtime_context().get_node_id()
        return Identity(node, socket.gethostname(), os.getpid(), _log_file(), name, tied)

    def sample(self, version: Version, request: Request) -> Packed:
        """Sample groups from the weights of `version`, which are loaded first if the engine has others.

        Raises:
            SyncError: the engine's weights are not those of the version. It samples nothing.
        """
        if self.version != version.number:
            self._load(version)
        held: dict[str, Any] = {} if request.openings is None else {"openings": request.openings}
        with self._arithmetic(request.autocast):
            groups = self.engine.generate(request.prompts, request.seeds, request.sampling, **held)
        return pack(groups)

    def _load(self, version: Version) -> None:
        self.version = None  # half of the weights may be loaded when it fails
        engine: Any = self.engine
        engine.load(read(version))
        if version.sums is not None and hasattr(engine, "weight_sums"):
            require_same("A rollout worker", version.number, version.sums, engine.weight_sums())
        self.version = version.number

    def _arithmetic(self, dtype: str | None) -> contextlib.AbstractContextManager:
        import torch

        if dtype is None or not self.as_trainer:
            return contextlib.nullcontext()
        return torch.autocast(self.device, getattr(torch, dtype))


def _log_file() -> str | None:
    """Return the file that this process's standard error goes to."""
    try:
        target = os.readlink("/proc/self/fd/2")
    except OSError:  # not Linux
        return None
    return target if os.path.isfile(target) else None
