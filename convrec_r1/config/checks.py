"""Checks across fields, made before anything is loaded: each names the keys and says what to do."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.options import out_of_bounds
from convrec_r1.config.schema import Config
from convrec_r1.data.config import PromptStyle
from convrec_r1.data.registry import ADAPTERS
from convrec_r1.distill.config import problems as distill_problems
from convrec_r1.evaluate.checks import problems as evaluation_problems
from convrec_r1.policy.config import ModelSource
from convrec_r1.reward.config import RankRewardConfig
from convrec_r1.rl.config import Advantage, Aggregation, Stage
from convrec_r1.rollout import config as rollout_config

TASKS = ("train", "eval", "distill", "compare", "workspace", "doctor")
DEMONSTRATIONS = ("published", "neighbours", "distilled")
_SECRET = re.compile(r"KEY$|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def check(cfg: Config) -> None:
    """Raise a UserError that lists everything about `cfg` that cannot work."""
    if wrong := problems(cfg):
        raise UserError("The configuration cannot work:\n" + "\n".join(f"  - {line}" for line in wrong))


def problems(cfg: Config) -> list[str]:
    """A sentence for everything about `cfg` that cannot work."""
    if cfg.task.name == "doctor":  # it says itself what is wrong with a run of this config, beside all else
        return []
    if cfg.task.name in ("compare", "workspace"):  # they load no data and train nothing
        wrong = [*_choices(cfg), *_comparison(cfg)]
    elif cfg.task.name == "distill":  # trains nothing and samples nothing
        wrong = [*_choices(cfg), *ranges(cfg), *_data_paths(cfg), *_stage1(cfg)]
    else:
        out_of_range = ranges(cfg)
        wrong = [*_choices(cfg), *out_of_range, *_paths(cfg), *_watching(cfg)]
        if not out_of_range:  # nothing divides among 0 processes
            wrong += [*_combinations(cfg), *_rollout(cfg)]
        wrong += _stage1(cfg) if cfg.data.demonstrations == "distilled" else []
        if cfg.distill.dry_run:
            wrong.append("distill.dry_run=true asks nothing and makes nothing: it goes with task=distill.")
    return [*out_of_bounds(cfg), *wrong, *_secrets(cfg)]


def _stage1(cfg: Config) -> list[str]:
    return distill_problems(cfg.teacher, cfg.embedder, cfg.distill, cfg.data)


def _secrets(cfg: Config) -> list[str]:
    """Values of the environment that are named as secrets are: a config is written to config.yaml, logs and W&B."""
    secrets = {value: name for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= 8}
    return [
        f"{key} holds the value of the environment variable {secrets[secret]}, which config.yaml and W&B would show. Leave "
        "it out; keys of teachers are read from the environment (teacher.api_key_env)."
        for key, value in _leaves(asdict(cfg))
        for secret in secrets
        if isinstance(value, str) and secret in value
    ]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _exists(path: str, test: Callable[[Path], bool] = Path.exists, within: str = ".") -> bool:
    try:
        return test(Path(path).expanduser() / within)
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody, a NUL
        return False


def _choices(cfg: Config) -> list[str]:
    wrong = []
    for key, value, known in (
        ("task.name", cfg.task.name, TASKS),
        ("data.adapter", cfg.data.adapter, tuple(ADAPTERS)),
        ("model.dtype", cfg.model.dtype, ("float32", "bfloat16")),
    ):
        if value not in known:
            wrong.append(f"{key}={value}: choose one of {', '.join('null' if k is None else k for k in known)}.")
    return wrong


def ranges(cfg: Config) -> list[str]:
    """Numbers with which nothing can be computed."""
    at_least_one = {
        "model.max_prompt_length": cfg.model.max_prompt_length,
        "model.max_completion_length": cfg.model.max_completion_length,
    }
    wrong = [f"{key}={value}: must be at least 1." for key, value in at_least_one.items() if value < 1]
    for key, value in (
        ("train", cfg.data.train_size),
        ("validation", cfg.data.validation_size),
        ("test", cfg.data.test_size),
    ):
        if value is not None and value < 1:
            wrong.append(f"data.{key}_size={value}: must be at least 1, or null for all.")
    for stage, optim in (("sft", cfg.sft), ("rl", cfg.rl)):
        if len(optim.betas) != 2:
            wrong.append(f"{stage}.betas={list(optim.betas)}: AdamW takes two.")
    return wrong


def _data_paths(cfg: Config) -> list[str]:
    wrong = []
    data = cfg.data
    if ADAPTERS.get(data.adapter, False) and not data.path:
        wrong.append(f"data={data.name} reads files: say where they are with data.path=DIR.")
    for key, value in (("data.path", data.path), ("data.catalog", data.catalog)):
        if value and not _exists(value):
            wrong.append(f"{key}={value}: there is no such file or folder (from {Path.cwd()}).")
    try:
        data.instruction.format(n=cfg.n)
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        wrong.append(
            f"data.instruction: {type(error).__name__} {error}: {{n}} alone may stand in braces; others are doubled."
        )
    source = data.demonstrations
    if source not in DEMONSTRATIONS and not _exists(source, within="dataset/train.jsonl"):
        wrong.append(
            f"data.demonstrations={source}: choose {', '.join(DEMONSTRATIONS)}, or the folder of a task=distill run (one with "
            "dataset/train.jsonl)."
        )
    return wrong


def _paths(cfg: Config) -> list[str]:
    wrong = _data_paths(cfg)
    if cfg.model.source is not ModelSource.tiny and not cfg.model.path:
        wrong.append("model.path is empty: give a Hub id or a folder, as in model=Qwen/Qwen2.5-0.5B-Instruct.")
    if cfg.warm_start not in (None, "sft") and not _exists(cfg.warm_start, within="config.json"):
        wrong.append(
            f"warm_start={cfg.warm_start}: choose sft, null, or the folder of a policy (one with a config.json, as "
            "RUN/checkpoints/last/policy)."
        )
    if cfg.task.name == "eval" and not cfg.checkpoint:
        wrong.append("task=eval needs checkpoint=RUN: a run's folder, a policy's folder or a Hub id.")
    return wrong


def _combinations(cfg: Config) -> list[str]:
    wrong = []
    algo, rl, trainer = cfg.algo, cfg.rl, cfg.trainer
    world = trainer.world
    if isinstance(cfg.reward, RankRewardConfig):
        wrong += cfg.reward.problems()
    if algo.stage is Stage.rl:
        rows = rl.prompts_per_step * algo.group_size
        if rl.prompts_per_step % world:
            wrong.append(
                f"rl.prompts_per_step={rl.prompts_per_step} does not divide among {world} processes: a group is never split."
            )
        elif (rows // world) % max(1, algo.minibatches):
            wrong.append(
                f"algo.minibatches={algo.minibatches} does not divide the {rows // world} completions of a process."
            )
        if algo.advantage is Advantage.rank and algo.aggregation is Aggregation.sequence and cfg.n == 1:
            wrong.append("n=1 with a rank advantage: there is one rank only; use algo.advantage=sequence.")
    if cfg.sft.batch_size % world:
        wrong.append(f"sft.batch_size={cfg.sft.batch_size} does not divide among {world} processes.")
    pure_bf16 = cfg.model.dtype == "bfloat16" or trainer.precision == "bf16-true"
    lowest = min(
        [cfg.sft.lr] if algo.stage is Stage.sft else [rl.lr] if cfg.warm_start != "sft" else [cfg.sft.lr, rl.lr]
    )
    if cfg.task.name == "train" and pure_bf16 and lowest < 1e-5:
        wrong.append(
            f"model.dtype={cfg.model.dtype}, trainer.precision={trainer.precision} would train pure bf16 weights at a "
            f"learning rate of {lowest:g}: bf16 keeps 8 bits, so steps this small round to nothing. Keep "
            "model.dtype=float32 with trainer.precision=bf16-mixed."
        )
    if trainer.accelerator == "gpu" and not _sees_gpu():
        wrong.append(
            f"trainer={trainer.name} asks for a GPU and torch sees none here: use trainer=cpu, or check the driver."
        )
    if trainer.strategy == "fsdp" and trainer.accelerator != "gpu":
        wrong.append("trainer.strategy=fsdp shards over GPUs: set trainer.accelerator=gpu, or use trainer=ddp on CPUs.")
    if trainer.strategy == "fsdp" and world < 2:
        wrong.append("trainer.strategy=fsdp with one device shards nothing: set trainer.devices, or use trainer=gpu.")
    if cfg.data.prompt is PromptStyle.published and cfg.n != 20 and cfg.data.adapter == "reddit_v2":
        wrong.append(
            f"data.prompt=published asks for 20 items in its own words and n={cfg.n}: set n=20 or data.prompt=ours."
        )
    if cfg.model.trust_remote_code and cfg.model.source is ModelSource.tiny:
        wrong.append("model.trust_remote_code has no meaning for model=tiny.")
    return wrong


def _watching(cfg: Config) -> list[str]:
    """The evaluation during training, and what follows from it."""
    reinforces = cfg.algo.stage is Stage.rl
    wrong = evaluation_problems(cfg.eval, cfg.n, cfg.metrics, cfg.baselines, reinforces=reinforces)
    wrong += cfg.guard.problems()
    return wrong


def _comparison(cfg: Config) -> list[str]:
    wrong = []
    if cfg.task.name == "compare":
        patterns = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
        if not patterns or not all(isinstance(p, str) and p for p in patterns):
            wrong.append("task=compare needs runs='outputs/STUDY/*', or runs=[FOLDER,FOLDER,...].")
    if cfg.compare.examples < 0:
        wrong.append(f"compare.examples={cfg.compare.examples}: must not be negative.")
    return wrong


def _rollout(cfg: Config) -> list[str]:
    return rollout_config.problems(
        cfg.rollout,
        accelerator=cfg.trainer.accelerator,
        world=cfg.trainer.world,
        group_size=cfg.algo.group_size,
    )


def _sees_gpu() -> bool:
    import torch  # seconds to import, and most configs ask for no GPU

    return torch.cuda.is_available()
