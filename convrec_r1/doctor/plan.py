"""The work of a run, from its config and data."""

import math

from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.data.load import shown
from convrec_r1.modules.config import Optimizer
from convrec_r1.modules.forecast import Plan
from convrec_r1.policy import PromptEncoder
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.config import VLLMConfig, choose_engine

_SAMPLE = 256
"""Conversations whose tokens are counted."""


def plan_of(cfg: Config, data: Dataset, encoder: PromptEncoder, *, packs: bool = False) -> Plan:
    """Count the steps, sequences and tokens of one process of a run: warm start, RL and evaluations.

    packs: whether the policy reads a prompt once for all its completions (`Policy.packs`).
    """
    rl, world = cfg.algo.stage is Stage.rl, cfg.trainer.world
    sample = data["train"][:: max(1, len(data["train"]) // _SAMPLE)]
    prompts = [len(encoder.prompt(c)) for c in sample]
    lists = [c.demonstration[: cfg.n] for c in sample if c.demonstration] or [list(data.catalog)[: cfg.n]]
    completions = [min(len(encoder.completion(items)), cfg.model.max_completion_length) for items in lists]
    warm = cfg.warm_start == "sft" or not rl
    examples = len(shown(data["train"]))
    chosen = cfg.baselines if cfg.eval.baselines is None else cfg.eval.baselines
    baselines = ("zero_shot" in chosen) + ("sft" in chosen and rl and bool(cfg.warm_start))
    validations = 1 + math.ceil(cfg.rl.steps / cfg.eval.every) if rl and cfg.eval.every else 0
    evaluated = (1 + baselines) * len(data[cfg.eval.split])
    evaluated += validations * min(len(data["validation"]), cfg.eval.validation_size) if validations else 0
    rows = max(1, cfg.rl.prompts_per_step * cfg.algo.group_size // world) if rl else 0
    sft_rows = max(1, cfg.sft.batch_size // world)
    updates = cfg.algo.mu * cfg.algo.minibatches
    engine = choose_engine(cfg.rollout)[0]
    sharing = cfg.algo.group_size if rl and packs else 1
    limit = cfg.trainer.pass_limit.rows(cfg.model.max_prompt_length, cfg.model.max_completion_length, sharing)
    width = engine.max_num_seqs if isinstance(engine, VLLMConfig) else getattr(engine, "batch_size", rows or 1)
    return Plan(
        prompt=cfg.model.max_prompt_length,
        completion=cfg.model.max_completion_length,
        mean_prompt=math.ceil(sum(prompts) / len(prompts)),
        mean_completion=math.ceil(sum(completions) / len(completions)),
        micro_batch=min(limit, math.ceil(rows / cfg.algo.minibatches) if rl else sft_rows),
        engine_batch=min(width, max(rows, evaluated)),
        sft_steps=cfg.sft.steps_for(examples) if warm else 0,
        sft_rows=sft_rows,
        rl_steps=cfg.rl.steps if rl else 0,
        rl_rows=rows,
        learned=cfg.algo.mu,
        scored=(cfg.algo.mu if cfg.algo.beta else 0) + (updates > 1),
        updates=updates,
        evaluated=math.ceil(evaluated / world),
        sharing=sharing,
        group=cfg.algo.group_size if rl else 1,
        rounds=cfg.algo.dynamic_sampling if rl else 0,
    )


def optimizers(cfg: Config) -> list[Optimizer]:
    """Return the optimizers of the run's trainings, that of the last one first."""
    rl = cfg.algo.stage is Stage.rl
    if rl and cfg.warm_start == "sft":
        return [cfg.rl.optimizer, cfg.sft.optimizer]
    return [(cfg.rl if rl else cfg.sft).optimizer]
