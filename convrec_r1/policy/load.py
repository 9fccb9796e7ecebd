"""Build a policy from its options: a tiny model, a folder or Hub id, or a package with a GGUF file."""

import logging
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from convrec_r1.base.digest import of_model
from convrec_r1.base.errors import UserError
from convrec_r1.policy.compile import compile_layers
from convrec_r1.policy.config import ModelConfig, ModelSource
from convrec_r1.policy.policy import Policy
from convrec_r1.policy.tiny import tiny_model, train_tokenizer
from convrec_r1.policy.wheel import model_from_wheel

_log = logging.getLogger(__name__)


def build_policy(
    cfg: ModelConfig, *, seed: int, corpus: Callable[[], Iterable[str]], temperature: float = 1.0
) -> Policy:
    """Return the policy of `cfg` before any training.

    Args:
        seed: seed of a tiny model's weights.
        corpus: returns the texts that a tiny model's tokenizer is trained on.
        temperature: see `Policy`.
    """
    if cfg.source is ModelSource.tiny:
        tokenizer = train_tokenizer(corpus(), cfg.vocab_size)
        policy = Policy(tiny_model(cfg, tokenizer, seed), tokenizer, temperature=temperature)
    else:
        assert cfg.path is not None  # see ModelConfig.problems
        path = model_from_wheel(cfg.path) if cfg.source is ModelSource.wheel else cfg.path
        policy = load_policy(path, cfg, temperature=temperature)
    _log.info("Model %s: %.1fM parameters", cfg.name, sum(p.numel() for p in policy.parameters()) / 1e6)
    return policy


def started_from(cfg: ModelConfig) -> str:
    """Return what the weights and the tokenizer before training are: a digest of a folder, a Hub commit, NAME==VERSION.

    Empty for a tiny model, which its options and the training texts decide.
    """
    if cfg.source is ModelSource.pretrained and cfg.path:
        return of_model(cfg.path, cfg.revision)
    return (cfg.path or "") if cfg.source is ModelSource.wheel else ""


def load_policy(path: str | Path, cfg: ModelConfig, *, temperature: float = 1.0, finite: bool = True) -> Policy:
    """Load a policy from a local folder or the Hub.

    Args:
        path: folder or Hub id. `cfg.path` is not used.
        cfg: dtype, attention, revision, trust_remote_code.
        temperature: see `Policy`.
        finite: refuse weights with NaN or Inf. False: load them, for inspection.
    Raises:
        UserError: the model is not available or not readable, is not a causal LM, has a tokenizer without EOS or newline, or
            has weights with NaN or Inf.
    """
    local = Path(path).expanduser().exists()
    options = {"revision": None if local else cfg.revision, "trust_remote_code": cfg.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        lm = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, cfg.dtype), attn_implementation=cfg.attention, **options
        )
    except (OSError, ValueError) as error:  # transformers: a missing file or repository, no connection
        what = "is a folder without a causal language model" if local else "is not a local folder, and not on the Hub"
        raise UserError(
            f"The model {path} {what}: {str(error).splitlines()[0]}\n"
            "Give model.path a folder with config.json and weights, or a Hub id. Gated models need `hf auth login`. "
            "model=tiny and model=smollm2-135m do not need the Hub."
        ) from error
    except (pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"The weights of the model {path} cannot be read: {_reason(error)}. A pickle file with more than tensors could run "
            "code and is not loaded. A truncated file must be copied again. Give model.path a folder with safetensors."
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {path} has no EOS token, so lists never end. Choose a model that has one.")
    bad = [name for name, weight in lm.named_parameters() if not weight.isfinite().all()] if finite else []
    if bad:
        raise UserError(
            f"{path} has weights that are not finite (NaN or Inf): {', '.join(bad[:8])}"
            f"{f' and {len(bad) - 8} more' if len(bad) > 8 else ''}. Choose another checkpoint or model."
        )
    policy = Policy(lm, tokenizer, temperature=temperature)
    lines = tokenizer("A\nB", add_special_tokens=False)["input_ids"]
    if not policy.newline[lines].any():
        raise UserError(
            f"The tokenizer of {path} has no newline: it reads two lines as {tokenizer.convert_ids_to_tokens(lines)}. "
            "A list has one item per line, so ranks would never end. Choose a model whose tokenizer keeps newlines "
            "(byte-level BPE, or SentencePiece with byte fallback)."
        )
    return policy


def _reason(error: Exception) -> str:
    """Return the line of an error that says what is wrong. torch puts advice around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__).rstrip(".")


def prepare_for_training(policy: Policy, cfg: ModelConfig, seed: int, *, compiled: bool = False) -> Policy:
    """Add LoRA adapters and gradient checkpointing as `cfg` says.

    Args:
        seed: seed of the adapters. torch's global random state plays no part and does not change.
        compiled: compile the decoder layers (policy/compile.py).
    """
    if cfg.lora.enabled:
        from peft import LoraConfig, get_peft_model

        lora = cfg.lora
        targets = lora.targets if lora.targets == "all-linear" else lora.targets.split(",")
        adapters = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm = get_peft_model(policy.causal_lm, adapters)
        policy = Policy(lm, policy.tokenizer, temperature=policy.temperature)
    if cfg.gradient_checkpointing:
        policy.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        compile_layers(policy)
    return policy.train()
