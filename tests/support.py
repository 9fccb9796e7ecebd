"""What tests share: small policies and configs, where the real data stands, the command line."""

import os
import subprocess
import sys
from pathlib import Path

# Tests measure behaviour, not speed; two threads on a shared machine mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import convrec_r1.cli  # noqa: F401  registers the schema and the resolver
from convrec_r1.config.files import conf_folder, expand
from convrec_r1.config.schema import Config, ModelConfig, ModelSource
from convrec_r1.data import movieland
from convrec_r1.lists import format
from convrec_r1.policy import build_policy
from convrec_r1.policy.prompts import dialogue

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def compose_config(*overrides: str):
    """The config that the command line would compose, as Hydra has it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=expand(overrides))


def make_config(*overrides: str) -> Config:
    composed = compose_config(*overrides)
    OmegaConf.resolve(composed)
    return OmegaConf.to_object(composed)


def run_command(*arguments: str, cwd: Path, python: str = sys.executable, timeout: int = 300, **env: str):
    """`python -m convrec_r1 ARGUMENTS` in another process, as a user runs it."""
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


SMOKE = ("debug=smoke", "logger=none")


def assert_user_error(done, *fragments: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for fragment in fragments:
        assert fragment in done.stderr, done.stderr
