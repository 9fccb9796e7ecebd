"""teacher=vllm: a model that vLLM serves, on this machine or on nodes of a cluster."""

import os
from pathlib import Path

from convrec_r1.distill.config import VLLMTeacherConfig
from convrec_r1.distill.teachers.base import Answer, Question
from convrec_r1.distill.teachers.openai import identity_of
from convrec_r1.distill.teachers.server import ModelServer
from convrec_r1.distill.teachers.workers import ServerPool


class VLLMTeacher:
    """Asks `options.model` of one server on this machine, or of several under Ray (`options.workers`)."""

    def __init__(self, options: VLLMTeacherConfig) -> None:
        who = {"weights": _weights(str(options.model)), "length": str(options.max_model_len)}
        self.identity = identity_of(options, **who, dtype=options.dtype, date=options.date)
        self._server = ServerPool(options) if options.workers else ModelServer(options)

    async def answer(self, question: Question) -> Answer:
        return await self._server.answer(question)

    async def close(self) -> None:
        await self._server.close()


def _weights(model: str) -> str:
    """Return what identifies weights: a Hub id, or the names, sizes and times of a folder's files."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return f"{os.path.abspath(folder)}: {[(f.name, (s := f.stat()).st_size, s.st_mtime_ns) for f in files]}"
