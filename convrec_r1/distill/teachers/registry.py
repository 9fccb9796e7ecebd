"""Teacher kinds -> how to make one. Imports happen on use: what is not chosen need not be installed."""

from convrec_r1.config.schema import Config
from convrec_r1.distill.config import TeacherKind
from convrec_r1.distill.teachers.base import Teacher


def make_teacher(cfg: Config) -> Teacher:
    """The teacher that the config names. Nothing is started or asked yet."""
    match cfg.teacher.kind:
        case TeacherKind.simulated:
            from convrec_r1.data.movieland import load_samples
            from convrec_r1.distill.teachers.simulated import SimulatedTeacher

            sizes: dict[str, int | None] = {"train": cfg.data.train_size, "validation": cfg.data.validation_size}
            given = {split: size for split, size in sizes.items() if size is not None}
            return SimulatedTeacher(load_samples(seed=cfg.data.seed, sizes=given), cfg.data.seed)
        case TeacherKind.openai:
            from convrec_r1.distill.teachers.openai import OpenAITeacher

            return OpenAITeacher(cfg.teacher)
        case TeacherKind.vllm:
            from convrec_r1.distill.teachers.vllm import VLLMTeacher

            return VLLMTeacher(cfg.teacher)
