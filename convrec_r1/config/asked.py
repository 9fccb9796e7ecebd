"""What a run asks of a Ray cluster."""

from convrec_r1.cluster.connect import Connection
from convrec_r1.cluster.resources import Bundle
from convrec_r1.config.checks import asks_teacher
from convrec_r1.config.schema import Config
from convrec_r1.distill.config import VLLMTeacherConfig
from convrec_r1.modules.hardware import training_group
from convrec_r1.rollout.workers.room import of_worker

SAMPLE = ("train", "eval", "doctor")
"""Tasks with rollout workers. The doctor looks at a run of training."""
BLOCK = Bundle(1, 0, "block of Stage 1")
"""Blocks are computed one by one beside what stays for the whole of Stage 1. Without a CPU they would wait for ever."""


def require_all(cfg: Config, connection: Connection) -> None:
    """Check that the cluster can hold the processes of a run: training with rollout workers, and with teachers and Stage 1.

    Raises:
        UserError: it cannot.
    """
    trains = cfg.task.name in ("train", "doctor") and cfg.trainer.world > 1
    training = training_group(cfg.trainer).bundles(cfg.cluster.trainer_cpus) if trains else []
    on_gpu = cfg.trainer.accelerator == "gpu"
    workers = [of_worker(cfg.rollout, gpu=on_gpu)] * (cfg.rollout.workers if cfg.task.name in SAMPLE else 0)
    connection.require([*training, *workers])
    connection.require([*training, *_servers(cfg), *([BLOCK] if _distills(cfg) else [])])


def _distills(cfg: Config) -> bool:
    return cfg.task.name == "distill" or cfg.data.demonstrations == "distilled"


def _servers(cfg: Config) -> list[Bundle]:
    teacher = cfg.teacher
    asked = _distills(cfg) or asks_teacher(cfg)
    if not asked or not isinstance(teacher, VLLMTeacherConfig) or not teacher.workers:
        return []
    from convrec_r1.distill.teachers.workers import of_server  # imported late: few runs ask a teacher

    return [of_server(teacher)] * teacher.workers
