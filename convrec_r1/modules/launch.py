"""The program that started this process (Slurm, torchrun, jsrun, mpirun), and whether the config agrees with it.

Lightning takes ranks from such a program and starts no processes of its own, but it deals out data for
`trainer.devices` x `trainer.nodes` processes. If fewer run, parts of every step belong to nobody.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from convrec_r1.modules.config import TrainerConfig

INTERACTIVE = ("bash", "interactive")
"""Names of Slurm jobs in which Lightning starts the processes itself."""


class Launch(NamedTuple):
    """How this process was started."""

    by: str
    """Name of the program."""
    variable: str
    """Environment variable with the number of processes."""
    world: int
    start: str
    """How to start one process per device."""


LAUNCHERS = (
    ("torchrun", "WORLD_SIZE", ("TORCHELASTIC_RUN_ID",), "torchrun --nnodes={nodes} --nproc-per-node={devices}"),
    ("Slurm", "SLURM_NTASKS", (), "srun --nodes={nodes} --ntasks-per-node={devices}"),
    ("LSF", "JSM_NAMESPACE_SIZE", ("LSB_JOBID",), "jsrun -n {world}"),
    ("MPI", "OMPI_COMM_WORLD_SIZE", (), ""),
    ("MPI", "PMI_SIZE", (), ""),
    ("a launcher", "WORLD_SIZE", ("LOCAL_RANK",), "torchrun --nnodes={nodes} --nproc-per-node={devices}"),
)
"""Name, variable with the number of processes, other variables that must be set, and how to start; in Lightning's order."""


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return the program that started this process and that Lightning takes ranks from. None: there is none."""
    for by, variable, others, start in LAUNCHERS:
        if by == "Slurm" and environment.get("SLURM_JOB_NAME") in INTERACTIVE:
            continue
        if (world := _number(environment, variable)) and all(environment.get(name) for name in others):
            return Launch(by, variable, world, start)
    return None


def devices_for(cfg: TrainerConfig, launch: Launch | None) -> int | None:
    """Return `trainer.devices`; if it is null, the number that the launcher started on each node. None: unknown."""
    if cfg.devices is not None or launch is None or launch.world % cfg.nodes:
        return cfg.devices
    return launch.world // cfg.nodes


def problems(cfg: TrainerConfig, *, trains: bool, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence if the number of processes contradicts the config.

    Args:
        cfg: `trainer`.
        trains: False for tasks of one process.
        environment: environment variables.
    """
    launch = launched(environment)
    if launch is None:
        return []
    started = f"{launch.by} started {launch.world} process{'es' if launch.world > 1 else ''} ({launch.variable})"
    if not trains:
        return [f"{started}, and this task is one process: start it without {launch.by}."] if launch.world > 1 else []
    if launch.by == "MPI":  # without mpi4py, Lightning takes each process for a run of its own
        return [f"{started}, whose ranks are not read: start with torchrun or srun."] if launch.world > 1 else []
    devices = devices_for(cfg, launch) or 1
    world = devices * cfg.nodes
    start = launch.start.format(nodes=cfg.nodes, devices=devices, world=world)
    if launch.world != world:
        wanted = f"trainer.devices={devices} x trainer.nodes={cfg.nodes} need {world}"
        fitting = f"trainer.devices={launch.world} trainer.nodes=1" if launch.world > 1 else "trainer.devices=1"
        return [
            f"{started}, but {wanted}: {_harm(launch.world, world)} Start `{start} python -m convrec_r1 ...`, or set {fitting}."
        ]
    return [
        f"{line} Start `{start} python -m convrec_r1 ...`." for line in _slurm(launch, devices, cfg.nodes, environment)
    ]


def _harm(started: int, world: int) -> str:
    if started < world:
        return f"{1 - started / world:.0%} of every step's prompts would never be used."
    return "the others would do the same work again, in the same folder."


def _slurm(launch: Launch, devices: int, nodes: int, environment: Mapping[str, str]) -> list[str]:
    """Return what Lightning refuses in Slurm's variables, with a trace, when training starts."""
    if launch.by != "Slurm":
        return []
    per_node, on = _number(environment, "SLURM_NTASKS_PER_NODE"), _number(environment, "SLURM_NNODES")
    if launch.world > 1 and per_node is None:
        return ["Slurm got --ntasks, but training needs --ntasks-per-node."]
    if per_node is not None and per_node != devices:
        return [f"Slurm starts {per_node} processes on a node (SLURM_NTASKS_PER_NODE), but trainer.devices={devices}."]
    if on is not None and on != nodes:
        return [f"Slurm uses {on} nodes (SLURM_NNODES), but trainer.nodes={nodes}."]
    return []


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else None
