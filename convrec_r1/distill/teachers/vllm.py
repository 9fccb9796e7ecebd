"""A teacher on this machine: `vllm serve`, started when it is first asked, and gone when the interview is over."""

import asyncio
import logging
import os
import shutil
import tempfile
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.distill.config import TeacherConfig
from convrec_r1.distill.teachers.base import Answer, Question, TeacherFault
from convrec_r1.distill.teachers.openai import OpenAITeacher, identity_of
from convrec_r1.rollout.vllm.options import runs_on_cpu
from convrec_r1.rollout.vllm.process import LocalProcess
from convrec_r1.rollout.vllm.server import Server, ServerFault

_log = logging.getLogger(__name__)

_STARTS = 3
"""Times that a server which dies is started."""


class VLLMTeacher:
    """Serves `cfg.model` on a port of the loopback interface. A server that dies is started again, twice at most."""

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.identity = identity_of(
            cfg, weights=_weights(str(cfg.model)), length=str(cfg.max_model_len), dtype=cfg.dtype
        )
        self._process: LocalProcess | None = None
        self._client: OpenAITeacher | None = None
        self._folder: Path | None = None
        self._starts = 0
        self._starting = asyncio.Lock()

    async def answer(self, question: Question) -> Answer:
        async with self._starting:
            if self._process is None or not self._process.alive():
                await self._start()
            process, client = self._process, self._client
            assert process is not None
            assert client is not None
        try:
            return await client.answer(question)
        except TeacherFault as fault:
            if not process.alive():
                raise TeacherFault("server died", f"the server of {self.cfg.model} ended ({process.log})") from fault
            raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._client = self._folder = None
        self._starts = 0

    async def _start(self) -> None:
        """Until the server is up. Raises UserError where it does not come up, with what its log says."""
        if self._client is not None:
            await self._client.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)  # whatever is left of it
        if self._starts == _STARTS:
            assert self._process is not None
            said = self._process.last_words()
            raise UserError(f"The server of teacher.model={self.cfg.model} died {_STARTS} times. Its log says:\n{said}")
        self._starts += 1
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="convrec_r1-teacher-"))
        process = LocalProcess(flags(self.cfg), self._folder / "server.log", self._folder, settings={})
        self._process, self._client = process, OpenAITeacher(self.cfg, base_url=f"{process.address}/v1")
        _log.info("A server of %s is starting, which takes a minute or more. Its log: %s", self.cfg.model, process.log)
        server = Server(process.address, timeout=self.cfg.timeout)
        try:
            await asyncio.to_thread(
                server.wait_until_up, self.cfg.start_timeout, lambda: None if process.alive() else "its process ended"
            )
        except ServerFault as fault:
            said = process.last_words()
            await asyncio.to_thread(process.stop)
            raise UserError(
                f"The server of teacher.model={self.cfg.model} did not come up within teacher.start_timeout="
                f"{self.cfg.start_timeout:g} s: {fault}. Its log says:\n{said}"
            ) from fault


def flags(cfg: TeacherConfig) -> list[str]:
    """For `vllm serve`."""
    found = {
        "--model": cfg.model,
        "--served-model-name": cfg.model,
        "--dtype": cfg.dtype,
        "--tensor-parallel-size": cfg.tensor_parallel_size,
        "--generation-config": "vllm",  # the model's own defaults would bend what the config says
    }
    if cfg.max_model_len is not None:
        found["--max-model-len"] = cfg.max_model_len
    if runs_on_cpu():
        # Half a GiB keeps tens of questions; vLLM would take 40 % of the machine.
        found["--kv-cache-memory-bytes"] = 1 << 29
    else:
        found["--gpu-memory-utilization"] = cfg.memory_fraction
    listed = [text for flag, value in found.items() for text in (flag, str(value))]
    return [*listed, "--enforce-eager"] if runs_on_cpu() else listed


def _weights(model: str) -> str:
    """A folder's weights by the names, sizes and times of its files, a Hub id by itself."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return f"{os.path.abspath(folder)}: {[(f.name, (s := f.stat()).st_size, s.st_mtime_ns) for f in files]}"
