"""The policy: a Hugging Face causal LM with its tokenizer, and log-probs of completions."""

import contextlib
import copy
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from convrec_r1.policy.allowed import allowed_logprobs, masked_logprobs
from convrec_r1.policy.attention import Unsupported, hidden_states, take_layouts, window_of
from convrec_r1.policy.batch import TokenBatch
from convrec_r1.policy.logprobs import token_logprobs
from convrec_r1.policy.mapped import MappedTensors, mapped
from convrec_r1.policy.packed import Packed
from convrec_r1.policy.prompts import special_id
from convrec_r1.policy.tokens import token_tables

_log = logging.getLogger(__name__)


class Policy(nn.Module):
    """A causal LM with its tokenizer. With LoRA, `lm` is peft's wrapper and the base weights are frozen.

    `temperature` divides the logits, so that log-probs are those of the distribution that rollouts are sampled from.
    """

    newline: Tensor  # these five: [V], see `TokenTables`
    blank: Tensor
    opens: Tensor
    eos: Tensor
    thought: Tensor

    def __init__(self, lm: nn.Module, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.lm: Any = lm  # Any: nn.Module declares no method of Hugging Face models or peft
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.shard_root: tuple[nn.Module, ...] = ()
        """The FSDP module that holds this policy's shards, if it is sharded."""
        self.eos_ids = _eos_ids(self.causal_lm, tokenizer)
        pad = special_id(tokenizer, "pad")
        self.pad_id = pad if pad is not None else self.eos_ids[0]
        # A model's own generation defaults (top_k, repetition penalty) would silently change the sampling distribution.
        self.causal_lm.generation_config = GenerationConfig(eos_token_id=self.eos_ids, pad_token_id=self.pad_id)
        tables = token_tables(tokenizer, self.head_weight.shape[0], self.eos_ids)
        for name, table in tables._asdict().items():
            self.register_buffer(name, table, persistent=False)
        self.window = window_of(self.causal_lm)
        self.fused_head, self.packs = self._find_ways()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The Hugging Face model. LoRA layers, if any, are inside it."""
        return self.lm.get_base_model() if self.has_lora else self.lm

    @property
    def has_lora(self) -> bool:
        return hasattr(self.lm, "peft_config")

    @property
    def head(self) -> Any:
        """The layer that turns hidden states into logits."""
        return self.causal_lm.get_output_embeddings()

    @property
    def head_weight(self) -> Tensor:
        """Weights of the head, [V, H]."""
        return self.head.weight

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropy at the completion tokens: float32 [B, T] each, 0 off the mask.

        Logits are computed for completion tokens only, and each prompt is read once for all its completions, where the model
        allows it (`packs`). Of constrained completions (`batch.allowed`), both are of the distribution over the allowed tokens.
        """
        on = batch.mask.bool()
        targets = batch.completion_ids[on]  # [M]
        allowed = None if batch.allowed is None else batch.allowed.at(on)
        if self.fused_head:
            hidden = self._packed(batch) if self.packs else None
            hidden = self._padded(batch, on) if hidden is None else hidden
            given = hidden, self.head_weight, targets, self.temperature
            logps, entropy = token_logprobs(*given) if allowed is None else allowed_logprobs(*given, allowed)
        else:
            logits = self._logits(batch, on).float() / self.temperature  # [M, V]
            logps, entropy = masked_logprobs(logits, targets, allowed)
        zeros = logps.new_zeros(on.shape)
        return zeros.masked_scatter(on, logps), zeros.masked_scatter(on, entropy)

    def _packed(self, batch: TokenBatch) -> Tensor | None:
        """Return the hidden states that predict the completion tokens, [M, H]. None: the model cannot read this packed."""
        if not batch.prompt_mask.any(-1).all():  # no token stands before the completion of an empty prompt
            return None
        packed = Packed(batch)
        if self.window is not None and packed.longest > self.window:
            return None
        return packed.before(hidden_states(self.causal_lm, packed.ids, packed.positions, packed))

    def _padded(self, batch: TokenBatch, on: Tensor) -> Tensor:
        """Return the same from a pass over each prompt with each of its completions."""
        ids, starts = batch.joined()
        row, column = on.nonzero(as_tuple=True)
        hidden = self.causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # [B, W, H]
        return hidden[row, (starts[row] + column - 1).clamp(min=0)]

    def _logits(self, batch: TokenBatch, on: Tensor) -> Tensor:
        """Return the logits of the completion tokens, [M, V], from the model's own head."""
        ids, starts = batch.joined()
        row, column = on.nonzero(as_tuple=True)
        kept = min(ids.shape[1], ids.shape[1] - int(starts.min()) + 1)
        logits = self.causal_lm(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
        return logits[row, (starts[row] + column - 1).clamp(min=0) - (ids.shape[1] - kept)]

    def score(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return what `forward` returns. Under FSDP the call goes through the sharded module, which gathers the weights."""
        return self.shard_root[0](batch) if self.shard_root else self(batch)

    def text(self, ids: Sequence[int]) -> str:
        """Return a completion as text, without its final EOS.

        Other special tokens are kept: without them, lines could differ from the ranks of the tokens.
        """
        ids = list(ids)
        if ids and ids[-1] in self.eos_ids:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients while the block runs."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def reference(self, *, dtype: torch.dtype | None = None, folder: Path | None = None) -> "Reference":
        """Return the policy as it is now, as reference for the KL: the base model under LoRA, else a frozen copy.

        Args:
            dtype: of the copy's weights. None: as the policy's.
            folder: keep the copy's weights in a file there instead of RAM, for a policy on the CPU. None: in RAM.
        """
        return Reference(self, dtype=dtype, folder=folder)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a Hugging Face folder (safetensors, tokenizer). LoRA adapters are merged into the written weights.

        weights: by their name in the checkpoint. None: this process's own.
        """
        lm = self.causal_lm
        if weights is None:
            lm = copy.deepcopy(self.lm).merge_and_unload() if self.has_lora else self.lm
        whole: Mapping[str, Tensor] = lm.state_dict() if weights is None else weights
        lm.save_pretrained(folder, state_dict={name: t.detach().cpu() for name, t in whole.items()})
        self.tokenizer.save_pretrained(folder)

    def _find_ways(self) -> tuple[bool, bool]:
        """Return what the model allows: the chunked head, and packed passes.

        Logits must be hidden states times head weights, without bias, soft cap or scale, and a packed pass must give the hidden
        states of a padded one.
        """
        plain = getattr(self.head, "bias", None) is None and type(self.head) is nn.Linear
        vocabulary = self.head_weight.shape[0]
        ids = torch.arange(12, device=self.device) % vocabulary
        prompts, lists = ids[:6].view(2, 3), ids[6:].view(3, 2)
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]], device=self.device)
        owner = torch.tensor([0, 0, 1], device=self.device)
        batch = TokenBatch(prompts, mask, owner, lists, torch.ones_like(lists))
        on = batch.mask.bool()
        with self.inference():
            hidden = self._padded(batch, on)
            if plain:
                logits = self._logits(batch, on)
                plain = torch.allclose((hidden @ self.head_weight.T).float(), logits.float(), rtol=1e-3, atol=1e-3)
            packs = plain and take_layouts(self.causal_lm) and self._packs(batch, hidden)
        if not packs:
            _say_once(type(self.causal_lm).__name__)
        return plain, packs

    def _packs(self, batch: TokenBatch, hidden: Tensor) -> bool:
        """Return whether a packed pass over `batch` gives `hidden`, [M, H]."""
        try:
            packed = self._packed(batch)
        except (Unsupported, TypeError, ValueError, RuntimeError, AttributeError):
            packed = None
        tolerance = 1e-3 if hidden.dtype is torch.float32 else 5e-2
        scale = float(hidden.float().abs().max())
        return packed is not None and bool((packed - hidden).float().abs().max() <= tolerance * max(scale, 1e-6))


class Reference:
    """A frozen policy that gives log-probs. Not an nn.Module, so that optimizers and checkpoints do not include it.

    On a CPU its weights can lie in a file: they are needed for one forward pass of a step, and take no memory while gradients
    are computed and applied.
    """

    def __init__(self, policy: Policy, *, dtype: torch.dtype | None = None, folder: Path | None = None) -> None:
        """dtype, folder: see `Policy.reference`. Without meaning under LoRA, where the reference is the policy's base model."""
        self._policy = policy
        self._frozen, self._file = (None, None) if policy.has_lora else _frozen(policy, dtype, folder)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return log-probs [B, T] without gradients."""
        return self.each([batch])[0]

    def each(self, batches: Iterable[TokenBatch]) -> list[Tensor]:
        """Return log-probs [B, T] of each batch without gradients. The weights are read from their file once for all."""
        try:
            return [self._score(batch) for batch in batches]
        finally:
            if self._file is not None:
                self._file.drop()

    def _score(self, batch: TokenBatch) -> Tensor:
        if self._frozen is not None:
            with torch.no_grad():
                return self._frozen.to(batch.mask.device)(batch)[0]
        with self._policy.inference(), self._policy.lm.disable_adapter():
            return self._policy.score(batch)[0]


@functools.cache
def _say_once(model: str) -> None:
    _log.info(
        "%s reads a prompt anew for each of its lists: its head or its attention is not of the common kind.", model
    )


def _frozen(policy: Policy, dtype: torch.dtype | None, folder: Path | None) -> tuple[Policy, MappedTensors | None]:
    """Return a frozen copy of a policy, and the file of its weights if they lie in one. Weights are copied once."""
    weights = list(policy.parameters())
    file = mapped(weights, folder if policy.device.type == "cpu" else None, dtype)
    copies = file.tensors if file else [w.detach().to(dtype or w.dtype, copy=True) for w in weights]
    # deepcopy takes from its memo what it holds: these copies instead of copies of its own.
    memo = {id(w): nn.Parameter(c, requires_grad=False) for w, c in zip(weights, copies, strict=True)}
    return copy.deepcopy(policy, memo).requires_grad_(False).eval(), file


def _eos_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a completion, the tokenizer's own first."""
    configured = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    configured = configured if isinstance(configured, list) else [configured]
    ids = [special_id(tokenizer, "eos"), *configured]
    return list(dict.fromkeys(i for i in ids if i is not None))
