"""Checks across fields, made before anything is loaded: each names the keys and says what to do."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from convrec_r1.base.errors import UserError
from convrec_r1.base.options import out_of_bounds
from convrec_r1.config.schema import Config
from convrec_r1.data import checks as data_checks
from convrec_r1.distill import checks as distill_checks
from convrec_r1.evaluate.config import Select
from convrec_r1.reward.config import RankRewardConfig
from convrec_r1.rl.config import Advantage, Aggregation, Stage
from convrec_r1.rollout import config as rollout_config

TASKS = ("train", "eval", "distill", "compare", "workspace", "doctor")
_SECRET = re.compile(r"KEY$|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
BASELINES = ("popularity", "zero_shot", "sft")


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
        wrong = [*_choices(cfg), *ranges(cfg), *data_checks.problems(cfg.data, cfg.n), *_stage1(cfg)]
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
    return distill_checks.problems(cfg.teacher, cfg.embedder, cfg.distill, cfg.data)


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


def _choices(cfg: Config) -> list[str]:
    wrong = []
    for key, value, known in (
        ("task.name", cfg.task.name, TASKS),
        ("eval.split", cfg.eval.split, ("train", "validation", "test")),
        ("eval.ideal", cfg.eval.ideal, ("standard", "paper")),
    ):
        if value not in known:
            wrong.append(f"{key}={value}: choose one of {', '.join('null' if k is None else k for k in known)}.")
    for name in cfg.eval.baselines:
        if name not in BASELINES:
            wrong.append(f"eval.baselines has {name!r}: choose among {', '.join(BASELINES)}.")
    return wrong


def ranges(cfg: Config) -> list[str]:
    """Numbers with which nothing can be computed."""
    at_least_one = {
        "eval.resamples": cfg.eval.resamples,
    }
    wrong = [f"{key}={value}: must be at least 1." for key, value in at_least_one.items() if value < 1]
    if not cfg.eval.ks or min(cfg.eval.ks) < 1:
        wrong.append(f"eval.ks={list(cfg.eval.ks)}: give at least one cut-off of 1 or more.")
    for stage, optim in (("sft", cfg.sft), ("rl", cfg.rl)):
        if len(optim.betas) != 2:
            wrong.append(f"{stage}.betas={list(optim.betas)}: AdamW takes two.")
    return wrong


def _paths(cfg: Config) -> list[str]:
    wrong = [*data_checks.problems(cfg.data, cfg.n), *cfg.model.problems()]
    if cfg.warm_start not in (None, "sft") and not data_checks.exists(cfg.warm_start, within="config.json"):
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
    return wrong


def _watching(cfg: Config) -> list[str]:
    """The evaluation during training, and what follows from it."""
    wrong, evaluation, guard = [], cfg.eval, cfg.guard
    if evaluation.every < 0:
        wrong.append(f"eval.every={evaluation.every}: steps between evaluations, or 0 for none.")
    known = [*(f"{metric}@{k}" for metric in ("ndcg", "recall") for k in cfg.ks), "mrr"]
    if cfg.metric not in known:
        wrong.append(
            f"eval.metric={evaluation.metric}: with eval.ks and n as they are, choose one of {', '.join(known)}."
        )
    if evaluation.patience is not None and evaluation.patience < 1:
        wrong.append(f"eval.patience={evaluation.patience}: evaluations without a gain, at least 1, or null.")
    for key, asked in (
        ("select=best", evaluation.select is Select.best),
        ("patience", evaluation.patience is not None),
    ):
        if asked and not evaluation.every and cfg.algo.stage is Stage.rl:
            wrong.append(f"eval.{key} needs evaluations during training: set eval.every above 0.")
    wrong += guard.problems()
    return wrong


def _comparison(cfg: Config) -> list[str]:
    wrong = []
    if cfg.task.name == "compare":
        patterns = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
        if not patterns or not all(isinstance(p, str) and p for p in patterns):
            wrong.append("task=compare needs runs='outputs/STUDY/*', or runs=[FOLDER,FOLDER,...].")
    if not 0 < cfg.eval.level < 1:
        wrong.append(f"eval.level={cfg.eval.level}: must lie between 0 and 1.")
    if cfg.eval.resamples < 1:
        wrong.append(f"eval.resamples={cfg.eval.resamples}: must be at least 1.")
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
