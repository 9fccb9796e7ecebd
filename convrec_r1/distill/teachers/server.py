"""A model on this machine: `vllm serve`, started at the first question and stopped at the end of the interview."""

import asyncio
import logging
import shutil
import tempfile
from datetime import date
from pathlib import Path

from convrec_r1.base.errors import UserError
from convrec_r1.distill.config import VLLMTeacherConfig
from convrec_r1.distill.teachers.base import Answer, NoAnswer, Question
from convrec_r1.distill.teachers.openai import ChatClient
from convrec_r1.distill.teachers.served import LocalProcess, wait_until_up
from convrec_r1.policy.templates import dated
from convrec_r1.rollout.vllm.options import runs_on_cpu

_log = logging.getLogger(__name__)

_STARTS = 3
"""Starts of a server that dies."""


class ModelServer:
    """Serves `options.model` on a port of the loopback interface. A server that dies is started again, twice at most."""

    def __init__(self, options: VLLMTeacherConfig) -> None:
        self.cfg = options
        self._process: LocalProcess | None = None
        self._client: ChatClient | None = None
        self._folder: Path | None = None
        self._starts = 0
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Return when the server is up. Raises UserError with the end of its log if it does not start."""
        async with self._starting:
            if self._process is None or not self._process.alive():
                await self._start()

    async def answer(self, question: Question) -> Answer:
        await self.start()
        process, client = self._process, self._client
        assert process is not None
        assert client is not None
        try:
            return await client.answer(question)
        except NoAnswer as failure:
            if not process.alive():  # asked again, of a new server
                raise NoAnswer("server died", f"the server of {self.cfg.model} ended ({process.log})") from failure
            raise

    async def close(self) -> None:
        await self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._client = self._folder = None
        self._starts = 0

    async def _stop(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)

    async def _start(self) -> None:
        await self._stop()
        if self._starts == _STARTS:
            assert self._process is not None
            said = self._process.last_words()
            raise UserError(f"The server of teacher.model={self.cfg.model} died {_STARTS} times. Its log says:\n{said}")
        self._starts += 1
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="convrec_r1-teacher-"))
        given = [*flags(self.cfg), *_fixed_day(self.cfg, self._folder)]
        process = LocalProcess(given, self._folder / "server.log", self._folder)
        day = date.fromisoformat(self.cfg.date).strftime("%d %b %Y")  # Llama's form
        template = {"date_string": day, **self.cfg.template}  # vLLM leaves out what the template does not know
        self._process, self._client = process, ChatClient(self.cfg, f"{process.address}/v1", template=template)
        _log.info("Starting a server of %s, which takes a minute or more. Its log: %s", self.cfg.model, process.log)
        try:
            await asyncio.to_thread(wait_until_up, process, self.cfg.start_timeout)
        except (TimeoutError, ChildProcessError) as fault:
            said = process.last_words()
            await asyncio.to_thread(process.stop)
            raise UserError(
                f"The server of teacher.model={self.cfg.model} did not start within teacher.start_timeout="
                f"{self.cfg.start_timeout:g} s: {fault}. Its log says:\n{said}"
            ) from fault


def flags(cfg: VLLMTeacherConfig) -> list[str]:
    """Return the flags for `vllm serve`."""
    found = {
        "--model": cfg.model,
        "--served-model-name": cfg.model,
        "--dtype": cfg.dtype,
        "--tensor-parallel-size": cfg.tensor_parallel_size,
        "--generation-config": "vllm",  # not the model's own sampling defaults
    }
    if cfg.max_model_len is not None:
        found["--max-model-len"] = cfg.max_model_len
    if runs_on_cpu():
        # Half a GiB holds tens of questions; vLLM's default is 40 % of the memory.
        found["--kv-cache-memory-bytes"] = 1 << 29
    else:
        found["--gpu-memory-utilization"] = cfg.memory_fraction
    listed = [text for flag, value in found.items() for text in (flag, str(value))]
    return [*listed, "--enforce-eager"] if runs_on_cpu() else listed


def _fixed_day(cfg: VLLMTeacherConfig, folder: Path) -> list[str]:
    """Return the flag for a chat template that takes `cfg.date` for today. None is needed if it does not ask."""
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        template = AutoTokenizer.from_pretrained(cfg.model).get_chat_template()
    except (OSError, ValueError):  # no tokenizer or no template: the server will say so
        return []
    if (fixed := dated(template, cfg.date)) == template:
        return []
    (folder / "template.jinja").write_text(fixed, encoding="utf-8")
    return ["--chat-template", str(folder / "template.jinja")]
