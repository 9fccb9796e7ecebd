"""Build the objects of a task from the config. Rooms below config/ get only their own options.

Modules that need transformers or Lightning are imported late: they take seconds, and task=score needs neither.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrec_r1.base.digest import of_code, of_value
from convrec_r1.base.plugins import build, plain, source_digests
from convrec_r1.config.schema import Config
from convrec_r1.data import Catalog, Dataset
from convrec_r1.data.load import digests, load_data
from convrec_r1.data.schema import SPLITS
from convrec_r1.evaluate.baselines import build_baselines
from convrec_r1.evaluate.metrics import build_metrics
from convrec_r1.evaluate.popularity import Popularity
from convrec_r1.evaluate.runner import Evaluator
from convrec_r1.lists import format
from convrec_r1.matching import Matching
from convrec_r1.modules.config import RLSettings
from convrec_r1.reward.base import Reward
from convrec_r1.reward.judge import Judge
from convrec_r1.reward.rank import Position
from convrec_r1.rl import ClippedSurrogate, Objective
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.base import Sampling
from convrec_r1.rollout.config import ConstraintChoice
from convrec_r1.run.folder import RunFolder

if TYPE_CHECKING:
    from convrec_r1.policy import Policy, PromptEncoder
    from convrec_r1.rollout.constraint import Constraint
    from convrec_r1.run.tracker import Tracker

_log = logging.getLogger(__name__)

CODE_OF_EVALUATIONS = ("lists", "matching", "data", "reward", "policy", "rollout", "evaluate", "config/parts")
"""Code that decides the evaluation of a policy."""


def dataset(cfg: Config, need: Sequence[str] = SPLITS) -> Dataset:
    """Load the dataset, see `load_data`. Large data is prepared once in `outputs`."""
    return load_data(cfg.data, cfg.n, matching(cfg), need=need, kept=Path(cfg.outputs) / "prepared")


def base_policy(cfg: Config, data: Dataset) -> Policy:
    """Build the policy before training."""
    from convrec_r1.policy import build_policy

    temperature = cfg.rollout.temperature
    return build_policy(cfg.model, seed=cfg.seed, corpus=lambda: corpus(cfg, data), temperature=temperature)


def corpus(cfg: Config, data: Dataset) -> list[str]:
    """Return the training texts of a tiny model's tokenizer."""
    from convrec_r1.policy.prompts import dialogue

    instruction = cfg.data.instruction.format(n=cfg.n)
    texts = [f"User: {instruction}\n{dialogue(c)}\nAssistant:\n" for c in data["train"]]
    texts += [format(c.demonstration) + "\n" for c in data["train"] if c.demonstration]
    return texts + [f"{item}\n" for item in data.catalog]


def encoder_for(cfg: Config, policy: Policy) -> PromptEncoder:
    """Build the encoder of prompts for `policy`'s tokenizer."""
    from convrec_r1.policy import PromptEncoder

    model = cfg.model
    return PromptEncoder(
        policy.tokenizer,
        cfg.data.instruction,
        cfg.n,
        model.max_prompt_length,
        template=model.template,
        date=model.date,
    )


def constraint_for(cfg: Config, catalog: Catalog, policy: Policy) -> Constraint | None:
    """Build what lists of `policy` are held to, in rollouts or in the evaluation. None: they are held to nothing.

    Raises:
        UserError: the model's tokenizer can write no item of the catalog.
    """
    if not constrained(cfg):
        return None
    from convrec_r1.rollout.constraint import Constraint

    constraint = Constraint.of(catalog, matching(cfg), policy)
    if sentence := constraint.too_short(policy.tokenizer, cfg.n, cfg.model.max_completion_length):
        _log.warning("%s", sentence)
    return constraint


def constrained(cfg: Config) -> list[str]:
    """Return the options by which lists are held to the catalog, each with its value."""
    chosen = {"eval.constraint": cfg.eval.constraint}
    if cfg.task.name == "train" and cfg.algo.stage is Stage.rl:
        chosen["rollout.constraint"] = cfg.rollout.constraint
    return [f"{key}={value.value}" for key, value in chosen.items() if value is not ConstraintChoice.none]


def judge(cfg: Config, catalog: Catalog) -> Judge:
    """Build the judge of lists: `reward` over `catalog`."""
    return Judge(catalog, reward(cfg), cfg.n, matching(cfg))


def reward(cfg: Config) -> Reward:
    """Build the reward."""
    return build(cfg.reward, "reward", Reward, function=True)


def matching(cfg: Config) -> Matching:
    """Build the rule for "the same item"."""
    return build(cfg.match, "match", Matching)


def evaluator(cfg: Config, data: Dataset, popularity: Popularity | None = None) -> Evaluator:
    """Build the evaluator of `data`. popularity: popularity in training. None: count it."""
    match = matching(cfg)
    if popularity is None:
        popularity = Popularity.in_training(data, match)
    return Evaluator(
        data.catalog,
        popularity,
        n=cfg.n,
        ks=cfg.ks,
        greedy=Sampling(temperature=0, max_tokens=cfg.model.max_completion_length, max_lines=cfg.max_lines),
        match=match,
        position=position(cfg),
        metrics=build_metrics(cfg.metrics, n=cfg.n, ks=cfg.ks, ideal=cfg.eval.ideal),
        baselines=build_baselines(cfg.baselines, cfg.eval.baselines, teacher=cfg.teacher, data=cfg.data),
    )


def position(cfg: Config) -> Position:
    """Return the rank rule of the reward for lines that are not items. The evaluation uses the same rule."""
    return getattr(reward(cfg), "position", "line")


def objective(cfg: Config) -> Objective:
    """Build `algo.objective`, or the clipped surrogate if it is null."""
    algo = cfg.algo
    if algo.objective is not None:
        return build(algo.objective, "algo.objective", Objective, function=True)
    return ClippedSurrogate(algo.ratio.value, algo.clip_low, algo.clip_high, algo.dual_clip, algo.beta)


def rl_settings(cfg: Config, scratch: Path | None = None) -> RLSettings:
    """Return the options of stage 2. scratch: folder of the run's temporary files."""
    return RLSettings(
        cfg.algo,
        cfg.rl,
        cfg.rollout,
        n=cfg.n,
        max_tokens=cfg.model.max_completion_length,
        pass_limit=cfg.trainer.pass_limit,
        seed=cfg.seed,
        guard=cfg.guard,
        reference_dtype=cfg.model.reference_dtype,
        reference_folder=scratch,
    )


def tracker(cfg: Config, plain: Mapping[str, Any], folder: RunFolder, git_sha: str | None) -> Tracker:
    """Build the run's tracker: `logger` and the user's `loggers`.

    plain: the resolved config as plain values.
    """
    from pytorch_lightning.loggers import Logger

    from convrec_r1.run.tracker import About, make_tracker

    about = About(cfg.study, cfg.task.name, [cfg.algo.name, cfg.model.name, cfg.data.name], plain, git_sha)
    own = [build(node, f"loggers.{name}", Logger) for name, node in cfg.loggers.items()]
    return make_tracker(cfg.logger, folder, about, own)


def evaluation_key(cfg: Config, data: Dataset) -> str:
    """Return a digest of everything that the evaluation of a policy depends on, besides the policy."""
    chosen = [cfg.metrics, cfg.baselines, plain(cfg.match), plain(cfg.rollout)]
    contents = digests(data)
    parts = {
        "data": [contents[name] for name in ("catalog", "train", cfg.eval.split)],
        "prompt": [cfg.data.instruction, cfg.n],
        "eval": [list(cfg.eval.ks), cfg.eval.ideal, position(cfg), plain(cfg.match)],
        "metrics": [cfg.metrics, cfg.baselines, source_digests(chosen)],
        "tokens": [cfg.model.max_prompt_length, cfg.model.max_completion_length],
        "prompts": [cfg.model.template, cfg.model.date],
        "engine": cfg.rollout.evaluation_identity,
        "constraint": cfg.eval.constraint.value,
        "code": of_code(*CODE_OF_EVALUATIONS),
    }
    return of_value(parts)
