"""Fill in open options of a config: hardware, and options that depend on others."""

from dataclasses import replace

from convrec_r1.config.schema import Config
from convrec_r1.matching import choose_matching
from convrec_r1.modules.hardware import choose_hardware
from convrec_r1.rl.config import Stage
from convrec_r1.rollout.config import choose_engine

LOADS_NOTHING = ("compare", "kept", "workspace", "publish")
"""Tasks that need no hardware."""
NO_MODEL = (*LOADS_NOTHING, "score")
"""Tasks that load no model: no hardware is chosen and nothing is seeded."""


def resolve(cfg: Config) -> list[str]:
    """Fill in `cfg` in place. Return a sentence for each choice, for the log."""
    if cfg.rl.completions_per_step is not None:
        prompts = max(1, cfg.rl.completions_per_step // cfg.algo.group_size)
        cfg.rl = replace(cfg.rl, prompts_per_step=prompts)
    cfg.match, match = choose_matching(cfg.match, cfg.recipe.name)
    if cfg.task.name in NO_MODEL:
        return [match] if match and cfg.task.name == "score" else []
    per_step = (cfg.sft.batch_size,) if cfg.algo.stage is Stage.sft else (cfg.rl.prompts_per_step, cfg.sft.batch_size)
    cfg.trainer, trainer = choose_hardware(cfg.trainer, per_step=per_step)
    cfg.rollout, rollout = choose_engine(cfg.rollout, gpu=cfg.trainer.accelerator == "gpu")
    said = [trainer, rollout, *filter(None, [match])]
    if cfg.task.name == "train":
        said.append(
            f"Recipe: {cfg.recipe.name} (sft.lr={cfg.sft.lr:g}, rl.lr={cfg.rl.lr:g}, rl.steps={cfg.rl.steps}, "
            f"rl.prompts_per_step={cfg.rl.prompts_per_step})."
        )
    return said
