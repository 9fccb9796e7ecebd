"""Checks of a whole config, before anything is loaded. Each sentence names the keys and says what to do.

Here are the checks across rooms. Bounds are at the fields (base/options.py), and the checks of one room are in the room.
"""

import importlib.util
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convrec_r1.base.confidential import holds, secrets_in
from convrec_r1.base.errors import UserError
from convrec_r1.base.options import out_of_bounds, walk
from convrec_r1.base.plugins import is_own, locate, plain, targets
from convrec_r1.cluster import config as cluster_config
from convrec_r1.config.resolve import LOADS_NOTHING
from convrec_r1.config.schema import Config
from convrec_r1.data import checks as data_checks
from convrec_r1.distill import checks as distill_checks
from convrec_r1.distill.config import DistillConfig
from convrec_r1.evaluate import checks as evaluation_checks
from convrec_r1.evaluate.baselines import chosen_baselines
from convrec_r1.evaluate.config import system_name
from convrec_r1.modules import launch
from convrec_r1.modules.config import Optimizer
from convrec_r1.reward.config import RankRewardConfig
from convrec_r1.rl.config import Advantage, Aggregation, Stage
from convrec_r1.rollout import config as rollout_config
from convrec_r1.serve import config as serve_config
from convrec_r1.serve.hub import config as publish_config


def check(cfg: Config) -> None:
    """Raise a UserError that lists all problems of `cfg`."""
    if wrong := problems(cfg):
        raise UserError("The configuration cannot work:\n" + "\n".join(f"  - {line}" for line in wrong))


def problems(cfg: Config) -> list[str]:
    """Return a sentence for each problem of `cfg`."""
    task = cfg.task.name
    if task == "doctor":  # the doctor reports the problems itself
        return []
    wrong = out_of_bounds(cfg)
    within = not wrong
    if task in serve_config.TASKS:
        wrong += [*serve_config.problems(cfg, task, cfg.checkpoint), *_use(cfg)]
    elif task in LOADS_NOTHING:
        wrong += _runs(cfg) if task == "compare" else []
        wrong += publish_config.problems(cfg.publish, cfg.checkpoint, cfg.hub) if task == "publish" else []
    else:
        wrong += data_checks.problems(cfg.data, cfg.n)
        wrong += launch.problems(cfg.trainer, trains=task == "train")
        wrong += [*cluster_config.problems(cfg.cluster), *_cluster(cfg)]
        if task == "score":
            wrong += [*_lists(cfg), *_plug_ins(cfg), *(_evaluation(cfg) if within else [])]
        elif task != "distill":
            wrong += [*_paths(cfg), *_plug_ins(cfg)]
            wrong += (
                [*_combinations(cfg), *_hardware(cfg)] if within else []
            )  # these checks compute with values within bounds
        if task == "distill" or cfg.data.demonstrations == "distilled":
            wrong += distill_checks.problems(cfg.teacher, cfg.embedder, cfg.distill, cfg.data, ray=cfg.cluster.on_ray)
        elif asks_teacher(cfg):
            wrong += distill_checks.problems(cfg.teacher, None, DistillConfig(), cfg.data, ray=cfg.cluster.on_ray)
        if cfg.distill.dry_run and task != "distill" and not asks_teacher(cfg):
            wrong.append(
                "distill.dry_run=true asks nothing and makes nothing: use it with task=distill, or where eval.baselines "
                "names teacher."
            )
    return [*wrong, *_secrets(cfg)]


def _runs(cfg: Config) -> list[str]:
    patterns = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
    if patterns and all(isinstance(p, str) and p for p in patterns):
        return []
    return ["task=compare needs runs='outputs/STUDY/*', or runs=[FOLDER,FOLDER,...]."]


def _cluster(cfg: Config) -> list[str]:
    """Check who starts the training processes, and where."""
    if not cfg.cluster.on_ray:
        return []
    wrong = []
    if (launched := launch.launched()) and launched.world > 1:
        wrong.append(
            f"{launched.by} started {launched.world} processes ({launched.variable}), and cluster=ray starts them itself: "
            "start one process, or use cluster=local."
        )
    if cfg.cluster.address is None and cfg.trainer.nodes > 1:
        wrong.append(
            f"trainer.nodes={cfg.trainer.nodes} with a Ray of this machine alone: give cluster.address=HOST:PORT, or auto."
        )
    return wrong


def asks_teacher(cfg: Config) -> bool:
    """Return whether the teacher's lists are a baseline of the evaluation."""
    return cfg.task.name != "distill" and "teacher" in chosen_baselines(cfg.baselines, cfg.eval.baselines)


def _lists(cfg: Config) -> list[str]:
    if not cfg.lists:
        return ["task=score needs lists=FILE: a .jsonl, .json, .csv or .tsv file, or a folder of text files."]
    wrong = [] if data_checks.exists(cfg.lists) else [f"lists={cfg.lists}: no such file or folder (from {Path.cwd()})."]
    if (name := system_name(cfg.lists, cfg.name)) in cfg.baselines:
        wrong.append(f"name={name} is the name of a baseline: give the system another, as name=my_{name}.")
    return wrong


def _plug_ins(cfg: Config) -> list[str]:
    """Import users' classes that the rooms' own checks do not look at: a fault is reported before a folder is made."""
    slots = {"reward": plain(cfg.reward), "match": plain(cfg.match), "algo": {"objective": cfg.algo.objective}}
    wrong = []
    for key, path in targets({**slots, "callbacks": cfg.callbacks, "loggers": cfg.loggers}).items():
        if is_own(path):
            continue
        try:
            locate(path, key)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def _paths(cfg: Config) -> list[str]:
    wrong = cfg.model.problems()
    if cfg.warm_start not in (None, "sft") and not data_checks.exists(cfg.warm_start, within="config.json"):
        wrong.append(
            f"warm_start={cfg.warm_start}: choose sft, null, or the folder of a policy (one with a config.json, as "
            "RUN/checkpoints/last/policy)."
        )
    if cfg.task.name == "eval" and not cfg.checkpoint:
        wrong.append("task=eval needs checkpoint=RUN: a run's folder, a policy's folder or a Hub id.")
    return wrong


def _evaluation(cfg: Config) -> list[str]:
    reinforces = cfg.task.name != "score" and cfg.algo.stage is Stage.rl
    return evaluation_checks.problems(cfg.eval, cfg.n, cfg.metrics, cfg.baselines, reinforces=reinforces)


def _combinations(cfg: Config) -> list[str]:
    algo, rl = cfg.algo, cfg.rl
    world = (launch.devices_for(cfg.trainer, launch.launched()) or 1) * cfg.trainer.nodes
    reinforces = algo.stage is Stage.rl
    wrong = cfg.reward.problems() if isinstance(cfg.reward, RankRewardConfig) else []
    wrong += _evaluation(cfg)
    wrong += cfg.guard.problems()
    wrong += rollout_config.problems(
        cfg.rollout,
        accelerator=cfg.trainer.accelerator,
        world=world,
        ray=cfg.cluster.on_ray,
    )
    if cfg.eval.constraint is not rollout_config.ConstraintChoice.none:
        wrong += rollout_config.cannot_constrain(cfg.rollout, f"eval.constraint={cfg.eval.constraint.value}")
    if reinforces:
        rows = rl.prompts_per_step * algo.group_size
        if rl.prompts_per_step % world:
            wrong.append(
                f"rl.prompts_per_step={rl.prompts_per_step} does not divide among {world} processes: a group is never split."
            )
        elif (rows // world) % algo.minibatches:
            wrong.append(
                f"algo.minibatches={algo.minibatches} does not divide the {rows // world} completions of a process."
            )
        if algo.advantage is Advantage.rank and algo.aggregation is Aggregation.sequence and cfg.n == 1:
            wrong.append("n=1 with a rank advantage: there is one rank only; use algo.advantage=sequence.")
    if cfg.sft.batch_size % world:
        wrong.append(f"sft.batch_size={cfg.sft.batch_size} does not divide among {world} processes.")
    for stage, optim in (("sft", cfg.sft), ("rl", rl)):
        if len(optim.betas) != 2:
            wrong.append(f"{stage}.betas={list(optim.betas)}: AdamW takes two.")
    return wrong


def _hardware(cfg: Config) -> list[str]:
    wrong, trainer, reinforces = [], cfg.trainer, cfg.algo.stage is Stage.rl
    rates = [cfg.sft.lr] if not reinforces else [cfg.rl.lr] if cfg.warm_start != "sft" else [cfg.sft.lr, cfg.rl.lr]
    pure_bf16 = cfg.model.dtype == "bfloat16" or trainer.precision == "bf16-true"
    if cfg.task.name == "train" and pure_bf16 and min(rates) < 1e-5:
        wrong.append(
            f"model.dtype={cfg.model.dtype}, trainer.precision={trainer.precision} would train pure bf16 weights at a "
            f"learning rate of {min(rates):g}: bf16 keeps 8 bits, so steps this small round to nothing. Keep "
            "model.dtype=float32 with trainer.precision=bf16-mixed."
        )
    elsewhere = cfg.cluster.on_ray and cfg.cluster.address is not None and trainer.world > 1  # on the cluster's GPUs
    wrong += [] if elsewhere else _gpu(cfg)
    wrong += _optimizer(cfg)
    if trainer.strategy == "fsdp" and trainer.accelerator != "gpu":
        wrong.append("trainer.strategy=fsdp shards over GPUs: set trainer.accelerator=gpu, or use trainer=ddp on CPUs.")
    if trainer.strategy == "fsdp" and trainer.compile:
        wrong.append(
            "trainer.compile=true with trainer.strategy=fsdp: a layer's weights are shards when its code is "
            "compiled. Use trainer.compile=false, or trainer=ddp."
        )
    if trainer.strategy == "fsdp" and trainer.world < 2:
        wrong.append("trainer.strategy=fsdp with one device shards nothing: set trainer.devices, or use trainer=gpu.")
    return wrong


def _use(cfg: Config) -> list[str]:
    """Check what a task that only uses a policy needs."""
    return [*rollout_config.problems(cfg.rollout, accelerator=cfg.trainer.accelerator, world=1), *_gpu(cfg)]


def _gpu(cfg: Config) -> list[str]:
    if cfg.trainer.accelerator != "gpu" or _sees_gpu():
        return []
    return [
        f"trainer={cfg.trainer.name} asks for a GPU and torch sees none here: use trainer=auto, or check the driver."
    ]


def _optimizer(cfg: Config) -> list[str]:
    """Check the stages that ask for 8-bit AdamW."""
    stages = {"sft": cfg.sft, "rl": cfg.rl}
    asked = [f"{stage}.optimizer=adamw_8bit" for stage, o in stages.items() if o.optimizer is Optimizer.adamw_8bit]
    if not asked or cfg.task.name != "train":
        return []
    keys, wrong = " and ".join(asked), []
    if cfg.trainer.accelerator == "cpu" or not _sees_gpu():
        wrong.append(f"{keys}: this needs a GPU. Use adamw here.")
    if cfg.trainer.strategy == "fsdp":
        wrong.append(
            f"{keys}: trainer.strategy=fsdp shards AdamW's state already, and cannot gather 8-bit state. Use adamw."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        wrong.append(
            f"{keys}: bitsandbytes is not installed. Run `pip install 'convrec-r1[bitsandbytes]'`, or use adamw."
        )
    return wrong


def _secrets(cfg: Config) -> list[str]:
    """Find values of secret environment variables, which config.yaml, logs and W&B would show."""
    secrets = secrets_in(os.environ, getattr(cfg.teacher, "api_key_env", ""))
    return [
        f"{key} holds the value of the environment variable {secrets[secret]}, which config.yaml and W&B would show. Leave "
        "it out; keys of teachers are read from the environment (teacher.api_key_env)."
        for key, value in _leaves(cfg)
        for secret in secrets
        if isinstance(value, str) and holds(value, secret)
    ]


def _leaves(cfg: Config) -> list[tuple[str, Any]]:
    return [(key, value) for key, value, _ in walk(asdict(cfg))]


def _sees_gpu() -> bool:
    import torch  # imported late: it takes seconds, and most configs do not need it

    return torch.cuda.is_available()
