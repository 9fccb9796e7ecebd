"""What tests share: small policies and configs, where the real data stands, the command line."""

import copy
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

import convrec_r1.cli  # noqa: F401  registers the schema and the resolver
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.resolve import resolve
from convrec_r1.config.schema import Config
from convrec_r1.data import movieland
from convrec_r1.lists import format
from convrec_r1.policy import build_policy
from convrec_r1.policy.config import ModelConfig, ModelSource
from convrec_r1.policy.prompts import dialogue
from convrec_r1.run.forkserver import ADDRESS, MODULES, SUPPORTED, ForkServer, fork

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
PATHS = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
"""Variables with which a process imports this checkout and its tests."""


def hydra_compose(*overrides: str) -> DictConfig:
    """The config that the command line would compose."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=expand(overrides))


def compose_config(*overrides: str) -> DictConfig:
    """Like `hydra_compose`, with the composition of the groups cached. Values are set last, as in Hydra."""
    parsed = OverridesParser.create().parse_overrides(expand(overrides))
    values = [override for override in parsed if is_value(override)]
    groups = [override.input_line for override in parsed if not is_value(override)]
    composed = copy.deepcopy(_composed(*groups))
    ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    return composed


_composed = functools.cache(hydra_compose)


def is_value(override: Override) -> bool:
    """Whether it is KEY=VALUE, and chooses no group."""
    key = override.key_or_group
    plain = override.type is OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
    return plain and not key.startswith("hydra.") and not (conf_folder() / key).is_dir()


def make_config(*overrides: str) -> Config:
    """The config that a task gets, with everything filled in."""
    cfg = unresolved_config(*overrides)
    resolve(cfg)
    return cfg


def unresolved_config(*overrides: str) -> Config:
    """The config that the checks get."""
    composed = compose_config(*overrides)
    OmegaConf.resolve(composed)
    return OmegaConf.to_object(composed)


def rl_module(policy, engine, encoder, catalog, cfg: Config, tracker, loader, kind=None, **more):
    """The module of stage 2 as tasks/train.py makes it."""
    from convrec_r1.config.parts import judge, objective, rl_settings
    from convrec_r1.modules.rl import RLModule

    kind = kind or RLModule
    return kind(policy, engine, encoder, judge(cfg, catalog), objective(cfg), rl_settings(cfg), tracker, loader, **more)


VLLM = ("vllm", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker")
"""What commands with rollout=vllm need besides."""


@functools.cache
def _server(preload: tuple[str, ...] = ()) -> ForkServer:
    """Commands are forked from a process that has imported what they need: the imports take longer than most commands.

    wandb is not among it: it makes a temporary folder when it is imported, which the first command would remove at its end.
    """
    more = (*preload, "transformers.models.qwen2.modeling_qwen2", "matplotlib.backends.backend_agg")
    return ForkServer([*MODULES, *more], env={**os.environ, **PATHS})


class Command:
    """`python -m MODULE ARGUMENTS`, running: a process and a session of its own. MODULE may be one of tests/.

    A variable of the environment that is None is unset.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        cwd: Path,
        env: dict[str, str | None],
        module: str = "convrec_r1",
        preload: tuple[str, ...] = (),
        said: str | None = None,
    ) -> None:
        """said: standard input. None: empty."""
        self._in = tempfile.TemporaryFile()  # noqa: SIM115
        self._in.write((said or "").encode())
        self._in.seek(0)
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        streams = {"stdin": self._in.fileno(), "stdout": self._out.fileno(), "stderr": self._err.fileno()}
        environment = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
        if SUPPORTED:
            address = _server(preload).address
            self._process = fork(
                address, arguments, env={ADDRESS: address, **environment}, cwd=cwd, module=module, **streams
            )
        else:
            command = [sys.executable, "-m", module, *arguments]
            self._process = subprocess.Popen(
                command, env={**environment, **PATHS}, cwd=cwd, start_new_session=True, **streams
            )
        self.pid = self._process.pid
        self.poll, self.kill, self.send_signal = self._process.poll, self._process.kill, self._process.send_signal

    @property
    def stdout(self) -> str:
        return self._read(self._out)

    @property
    def stderr(self) -> str:
        return self._read(self._err)

    @property
    def said(self) -> str:
        return self.stdout + self.stderr

    @property
    def done(self) -> subprocess.CompletedProcess[str]:
        """The result of the command, which has ended."""
        return subprocess.CompletedProcess([], self.wait(0), self.stdout, self.stderr)

    def wait(self, timeout: float = 300) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the command took more than {timeout:.0f} s:\n{self.said}") from None

    def end(self) -> None:
        """Kill it."""
        self.kill()
        self._process.wait()

    def until(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait for a condition while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None, self.said
            assert time.monotonic() < end, "it took too long:\n" + self.said
            time.sleep(0.01)

    @staticmethod
    def _read(file) -> str:
        return os.pread(file.fileno(), 1 << 30, 0).decode(errors="replace")


def start_command(
    *arguments: str, cwd: Path, preload: tuple[str, ...] = (), said: str | None = None, **env: str
) -> Command:
    """`python -m convrec_r1 ARGUMENTS`.

    Args:
        preload: modules that its fork server imports beside the usual ones.
        said: standard input.
    """
    return Command(arguments, cwd, env, preload=preload, said=said)


def run_command(
    *arguments: str, cwd: Path, timeout: int = 300, preload: tuple[str, ...] = (), said: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    command = start_command(*arguments, cwd=cwd, preload=preload, said=said, **env)
    command.wait(timeout)
    return command.done


def start_group(*arguments: str, cwd: Path, world: int, module: str = "convrec_r1") -> list[Command]:
    """The same command in `world` processes, which torchrun's environment variables make a group."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    commands = []
    for rank in range(world):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
        commands.append(Command(arguments, cwd, {name: str(value) for name, value in group.items()}, module))
    return commands


def run_group(*arguments: str, cwd: Path, world: int, timeout: int = 300, module: str = "convrec_r1") -> list[Command]:
    """The same, to their end."""
    commands = start_group(*arguments, cwd=cwd, world=world, module=module)
    try:
        for command in commands:
            command.wait(timeout)
    except AssertionError:
        for command in commands:
            command.end()
        raise AssertionError("\n".join(f"-- rank {i}:\n{command.said}" for i, command in enumerate(commands))) from None
    return commands


def start_job(function: str, *arguments, cwd: Path) -> Command:
    """`MODULE:FUNCTION` of tests/, called with `arguments` (JSON) in a process of its own."""
    return Command((function, json.dumps(arguments)), cwd, {}, "job")


def run_job(function: str, *arguments, cwd: Path, world: int = 1) -> list[Command]:
    """The same in `world` processes, to their end."""
    if world > 1:
        return run_group(function, json.dumps(arguments), cwd=cwd, world=world, module="job")
    command = start_job(function, *arguments, cwd=cwd)
    command.wait()
    return [command]


def assert_done(commands: list[Command]) -> None:
    assert not any(command.poll() for command in commands), "\n".join(command.said for command in commands)


def run_python(*arguments: str, cwd: Path, python: str = sys.executable, timeout: int = 300, **env: str):
    """Run `python -m convrec_r1 ARGUMENTS` in a new interpreter, as people do, without the fork server."""
    return subprocess.run(
        [python, "-m", "convrec_r1", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**os.environ, **env},
    )  # fmt: skip


def tiny_policy(seed: int = 0, **changes):
    """A policy of about 100,000 parameters over movieland's words."""
    data = movieland.load(seed=0, n_items=5, sizes={"train": 40, "validation": 4, "test": 4})
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 1}
    cfg = ModelConfig(name="tiny", source=ModelSource.tiny, **{**sizes, **changes})
    corpus = [dialogue(c) for c in data["train"]] + [format(c.demonstration) + "\n" for c in data["train"]]
    return build_policy(cfg, seed=seed, corpus=lambda: corpus)


needs_no_tracer = pytest.mark.skipif(
    sys.gettrace() is not None, reason="Hydra takes coverage's tracer for a debugger: traces"
)

SMOKE = ("debug=smoke", "logger=none")
SMALL_MODEL = ("model.layers=1", "model.max_completion_length=24")
"""For commands in which the model plays no part: half the time."""


class PowerCut(Exception):
    """The end of a process, for tests that resume in the same process."""


def power_cut(step: int, total: int):
    """A callback that raises PowerCut when a step of `total` is validated."""
    from convrec_r1.modules.callbacks import Watch  # takes seconds to import

    def cut(now: int) -> float:
        if now == step:
            raise PowerCut
        return 0.0

    return Watch(cut, every=1, total=total)


def examples(number: int) -> int:
    """Examples of a property, where hypothesis would take 100: as many times more as its profile asks for (conftest.py)."""
    return number * settings.default.max_examples // 100


def assert_user_error(done, *fragments: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for fragment in fragments:
        assert fragment in done.stderr, done.stderr
