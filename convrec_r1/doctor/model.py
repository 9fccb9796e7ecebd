"""The model that a run would train: found, and counted without its weights."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import Qwen2ForCausalLM as TinyModel

from convrec_r1.config.schema import Config
from convrec_r1.doctor.estimate import Size
from convrec_r1.doctor.findings import Finding, Level
from convrec_r1.doctor.findings import size as shown
from convrec_r1.policy.config import ModelConfig, ModelSource
from convrec_r1.policy.load import with_lora
from convrec_r1.policy.tiny import tiny_config, train_tokenizer
from convrec_r1.policy.wheel import cache_folder

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Model:
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    size: Size


def find_model(cfg: Config, corpus: Callable[[], Iterable[str]]) -> tuple[list[Finding], Model | None]:
    """What there is to say of the model, and the model itself where it can be had. Reads no weights and fetches none.

    corpus: the texts that a tiny model's tokenizer is cut from.
    """
    try:
        if cfg.warm_start in (None, "sft"):
            path = model_path(cfg.model)
        else:  # a policy to start from, which brings its own architecture
            path = Path(cfg.warm_start).expanduser()
        if path is None:
            tokenizer = train_tokenizer(corpus(), cfg.model.vocab_size)
            config = tiny_config(cfg.model, tokenizer)
            lm = _on_meta(lambda: TinyModel(config))
        elif cfg.model.source is ModelSource.wheel and not (Path(path) / "config.json").exists():
            return [_not_fetched(cfg.model)], None
        else:
            options: dict[str, Any] = {"trust_remote_code": cfg.model.trust_remote_code}
            options["revision"] = None if Path(path).exists() else cfg.model.revision
            config = AutoConfig.from_pretrained(path, **options)
            lm = _on_meta(
                lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=options["trust_remote_code"])
            )
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:  # what transformers raises for what is no model
        return [_not_had(cfg, error)], None
    if tokenizer.eos_token_id is None:
        advice = "Choose a model whose tokenizer has an end token."
        return [Finding("model", "its tokenizer has no EOS token: no list could end", Level.FAIL, advice)], None
    plain = lm  # adapters go into the copy: the model as it is tells the sizes
    if cfg.model.lora.enabled:
        try:
            lm = with_lora(copy.deepcopy(lm), cfg.model.lora, cfg.seed)
        except ValueError as error:  # no module has such a name
            advice = "model.lora.targets: all-linear, or names of layers, with commas between."
            return [Finding("model", f"LoRA: {str(error).splitlines()[0][:200]}", Level.FAIL, advice)], None
    model = Model(config, tokenizer, size_of(plain, lm))
    findings = [Finding("model", _described(cfg, model))]
    if path is not None:
        findings += [*_lengths(cfg, config), *_weights(str(path), cfg.model, model)]
    return findings, model


def model_path(cfg: ModelConfig) -> str | Path | None:
    """The folder or Hub id of a model; None for one that is made here."""
    if cfg.source is ModelSource.tiny:
        return None
    if cfg.source is ModelSource.wheel:
        return cache_folder() / (cfg.path or "").replace("==", "-")
    local = Path(cfg.path or "").expanduser()
    return local if local.exists() and cfg.path else cfg.path or ""


def size_of(plain: PreTrainedModel, trained: nn.Module) -> Size:
    """plain: without adapters.  trained: with them, if there are any."""
    config = plain.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head, embeddings = plain.get_output_embeddings(), plain.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    linear = [m for m in plain.modules() if isinstance(m, nn.Linear) and m is not head]
    blocks = max((m for m in plain.modules() if isinstance(m, nn.ModuleList)), key=_count)
    layer = max(map(_count, blocks))
    return Size(
        parameters=_count(trained),
        trainable=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        matrices=sum(m.weight.numel() for m in linear),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        q=config.num_attention_heads * head_dim,
        kv=kv_heads * head_dim,
        vocab=embeddings.shape[0],
        unit=max(layer, _count(plain) - sum(map(_count, blocks))),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _on_meta(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.device("meta"):
        return make()


def _described(cfg: Config, model: Model) -> str:
    size = model.size
    text = f"{cfg.model.name}: {size.parameters / 1e6:,.1f}M parameters, {size.layers} layers of {size.hidden}, "
    text += f"{size.vocab:,} tokens"
    return text + (f"; {size.trainable / 1e6:,.1f}M of them trained (LoRA)" if cfg.model.lora.enabled else "")


def _not_fetched(cfg: ModelConfig) -> Finding:
    return Finding(
        "model", f"{cfg.path} is not in the cache yet, so its size is not known", Level.WARN,
        "A run fetches it (with pip, once); debug=smoke with this model does so in minutes.",
    )  # fmt: skip


def _not_had(cfg: Config, error: Exception) -> Finding:
    source = cfg.warm_start if cfg.warm_start not in (None, "sft") else cfg.model.path or cfg.model.name
    advice = "Check the model's sizes (model.heads must divide model.hidden_size)."
    if cfg.model.source is not ModelSource.tiny:
        advice = (
            "Give model.path a folder with config.json and weights, or a Hub id; gated models need `hf auth login`; without a "
            "network, model=tiny and model=smollm2-135m need no Hub."
        )
    return Finding("model", f"{source} cannot be had: {(str(error).splitlines() or [''])[0][:200]}", Level.FAIL, advice)


def _lengths(cfg: Config, config: PretrainedConfig) -> list[Finding]:
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not most or cfg.model.max_length <= most:
        return []
    return [
        Finding(
            "lengths", f"prompt and completion may have {cfg.model.max_length} tokens, the model was made for {most}",
            Level.WARN, "Lower model.max_prompt_length or model.max_completion_length.",
        )
    ]  # fmt: skip


def _weights(path: str, cfg: ModelConfig, model: Model) -> list[Finding]:
    """Whether the weights are here, or must be fetched first."""
    if Path(path).is_dir():
        if any(Path(path).glob("*.safetensors")) or any(Path(path).glob("*.bin")):
            return []
        advice = "Give model.path the folder of a whole model."
        return [Finding("weights", f"{path} has a config and no weights", Level.FAIL, advice)]
    if any(isinstance(try_to_load_from_cache(path, name, revision=cfg.revision), str) for name in WEIGHTS):
        return []
    if constants.HF_HUB_OFFLINE:
        advice = "Unset HF_HUB_OFFLINE, or fetch them first: hf download " + path
        return [Finding("weights", f"{path} is not in the Hub's cache, and HF_HUB_OFFLINE is set", Level.FAIL, advice)]
    expected = shown(model.size.parameters * 2)
    advice = f"A run fetches them; beforehand: hf download {path}"
    return [Finding("weights", f"to be fetched from the Hub, {expected} or more", Level.WARN, advice)]
