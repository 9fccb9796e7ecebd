"""Schemas of built-in choices, by group and name: `defaults: [/schema/reward/rank@_here_]` in a YAML of conf/ asks for one.

A choice with a schema has typed keys: an unknown key or a bad type is an error that names the key.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from convrec_r1.base.errors import UserError
from convrec_r1.base.visible import visible
from convrec_r1.config.naming import run_dir, run_name, study_dir
from convrec_r1.config.schema import Config
from convrec_r1.data.config import FilmsConfig, TitlesConfig
from convrec_r1.distill.config import (
    OpenAITeacherConfig,
    SentenceTransformersConfig,
    SimulatedTeacherConfig,
    TfidfConfig,
    VLLMTeacherConfig,
)
from convrec_r1.matching import AutoConfig, FoldedConfig, NormalisedConfig
from convrec_r1.reward.config import RankRewardConfig
from convrec_r1.rollout.config import HFConfig, VLLMConfig
from convrec_r1.studies.config import RayLauncherConfig

USER_ERROR = 2
"""Exit status of a user error."""
SCHEMAS = {
    "data": {"films": FilmsConfig, "titles": TitlesConfig},
    "match": {"auto": AutoConfig, "folded": FoldedConfig, "normalised": NormalisedConfig},
    "reward": {"rank": RankRewardConfig},
    "rollout": {"hf": HFConfig, "vllm": VLLMConfig},
    "teacher": {"simulated": SimulatedTeacherConfig, "openai": OpenAITeacherConfig, "vllm": VLLMTeacherConfig},
    "embedder": {"tfidf": TfidfConfig, "sentence-transformers": SentenceTransformersConfig},
}


def register() -> None:
    """Register the schemas and the resolvers of folder names with Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    store.store(group="hydra/launcher", name="ray", node=RayLauncherConfig, provider="convrec_r1")
    for resolver in (run_name, run_dir, study_dir):
        OmegaConf.register_new_resolver(resolver.__name__, _ending(resolver), replace=True)


def _ending(resolver: Callable[..., str]) -> Callable[..., str]:
    """Return a resolver that prints a UserError and exits. OmegaConf would print a trace."""

    @functools.wraps(resolver)
    def resolve(**given: Any) -> str:
        try:
            return resolver(**given)
        except UserError as error:
            print(f"\n{visible(str(error))}", file=sys.stderr)
            sys.exit(USER_ERROR)

    return resolve
