"""The policy: a Hugging Face causal LM with its tokenizer, and log-probs of completions."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from convrec_r1.policy.logprobs import token_logprobs
from convrec_r1.policy.mapped import MappedTensors, mapped
from convrec_r1.policy.prompts import special_id
from convrec_r1.policy.tokens import token_tables


@dataclass
class TokenBatch:
    """A batch of prompts, padded on the left, and completions, padded on the right."""

    prompt_ids: Tensor  # [B, S]
    prompt_mask: Tensor  # [B, S]
    completion_ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]: 1 on tokens of the completion including EOS, 0 on padding

    @classmethod
    def collate(cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int) -> "TokenBatch":
        """Pad token lists to a batch."""
        return cls(*pad_rows(prompts, pad, left=True), *pad_rows(completions, pad))

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(*(t.to(device) for t in vars(self).values()))

    def joined(self) -> tuple[Tensor, Tensor]:
        """Return each prompt and its completion as one row, padded on the right only.

        A causal model needs no attention mask then: no token sees the padding after it. With padding on the left, its rows
        would attend to nothing, and for those some attention kernels return NaN gradients (cuDNN's in bf16, on an H200).

        Returns:
            ids, LongTensor [B, W], and the column at which each completion starts, LongTensor [B].
        """
        starts, lengths = self.prompt_mask.sum(-1), self.mask.sum(-1)
        whole = torch.cat([self.prompt_ids, self.completion_ids], 1)
        width = max(1, int((starts + lengths).max()))
        columns = torch.arange(width, device=whole.device)[None] + (self.prompt_ids.shape[1] - starts)[:, None]
        return whole.gather(1, columns.clamp(max=whole.shape[1] - 1)), starts

    def rows(self, index: Tensor) -> "TokenBatch":
        """Return the rows of `index`, without the columns that are padding in all of them."""
        s = int(self.prompt_mask[index].sum(-1).max())
        t = max(1, int(self.mask[index].sum(-1).max()))
        prompts = self.prompt_ids[index, -s:], self.prompt_mask[index, -s:]
        return TokenBatch(*prompts, self.completion_ids[index, :t], self.mask[index, :t])


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad token lists. Return ids and mask (1 on tokens), LongTensor [B, width], at least one column wide."""
    side = "left" if left else "right"
    tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tokens, batch_first=True, padding_value=pad, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True, padding_side=side)
    if ids.shape[1] == 0:
        ids, mask = torch.full((len(rows), 1), pad), torch.zeros(len(rows), 1, dtype=torch.long)
    return ids, mask


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
        self.fused_head = self._head_is_plain()

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

        Logits are computed for completion tokens only.
        """
        ids, starts = batch.joined()
        on = batch.mask.bool()
        targets = batch.completion_ids[on]  # [M]
        row, column = on.nonzero(as_tuple=True)
        before = (starts[row] + column - 1).clamp(min=0)  # where the logits of each target are
        if self.fused_head:
            hidden = self.causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # [B, W, H]
            logps, entropy = token_logprobs(hidden[row, before], self.head_weight, targets, self.temperature)
        else:
            kept = min(ids.shape[1], ids.shape[1] - int(starts.min()) + 1)
            logits = self.causal_lm(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
            log_p = torch.log_softmax(
                logits[row, before - (ids.shape[1] - kept)].float() / self.temperature, -1
            )  # [M, V]
            logps = log_p.gather(1, targets[:, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(-1).detach()
        zeros = logps.new_zeros(on.shape)
        return zeros.masked_scatter(on, logps), zeros.masked_scatter(on, entropy)

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

    def _head_is_plain(self) -> bool:
        """Return whether logits are hidden states times head weights, without bias, soft cap or scale."""
        if getattr(self.head, "bias", None) is not None or type(self.head) is not nn.Linear:
            return False
        ids = torch.arange(8, device=self.device)[None] % self.head_weight.shape[0]
        with self.inference():
            hidden = self.causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            plain = hidden @ self.head_weight.T
            logits = self.causal_lm(input_ids=ids, use_cache=False).logits
        return torch.allclose(plain.float(), logits.float(), rtol=1e-3, atol=1e-3)


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
