"""The policy: a Hugging Face causal LM with its tokenizer, and the log-probs of what it might say."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from convrec_r1.lists import WHITESPACE
from convrec_r1.policy.logprobs import token_logprobs
from convrec_r1.policy.prompts import special_id


@dataclass
class TokenBatch:
    """Prompts padded on the left, completions padded on the right."""

    prompt_ids: Tensor  # [B, S]
    prompt_mask: Tensor  # [B, S]
    completion_ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]: 1 on tokens of the completion, EOS included

    @classmethod
    def collate(cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int) -> "TokenBatch":
        prompt_ids, prompt_mask = pad_rows(prompts, pad, left=True)
        completion_ids, mask = pad_rows(completions, pad)
        return cls(prompt_ids, prompt_mask, completion_ids, mask)

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(*(t.to(device) for t in vars(self).values()))

    def rows(self, index: Tensor) -> "TokenBatch":
        """Some rows, without the columns that are padding in all of them."""
        s = int(self.prompt_mask[index].sum(-1).max())
        t = max(1, int(self.mask[index].sum(-1).max()))
        return TokenBatch(
            self.prompt_ids[index, -s:],
            self.prompt_mask[index, -s:],
            self.completion_ids[index, :t],
            self.mask[index, :t],
        )


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token lists as LongTensor [B, width] and their mask, at least one column wide."""
    width = max(1, max(map(len, rows)))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids, mask


class Policy(nn.Module):
    """Wraps `lm`; with LoRA, `lm` holds the adapters (peft) and its base weights are frozen.

    `temperature` divides the logits in `forward`, so that log-probs are those of the distribution rollouts come from.
    """

    newline: Tensor
    blank: Tensor
    eos: Tensor

    def __init__(self, lm: nn.Module, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.lm: Any = lm  # a Hugging Face model or peft's wrapper of one: nn.Module declares none of what they do
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.shard_root: tuple[nn.Module, ...] = ()
        """The FSDP module that holds this policy's shards, if training put it there."""
        self.eos_ids = _eos_ids(self.causal_lm, tokenizer)
        pad = special_id(tokenizer, "pad")
        self.pad_id = pad if pad is not None else self.eos_ids[0]
        # A hub model's own generation defaults (top_k, repetition penalty) would bend what is sampled away from what
        # is trained, in silence.
        self.causal_lm.generation_config = GenerationConfig(eos_token_id=self.eos_ids, pad_token_id=self.pad_id)
        newline, blank, eos = token_tables(tokenizer, self.head_weight.shape[0], self.eos_ids)
        for name, table in (("newline", newline), ("blank", blank), ("eos", eos)):  # BoolTensor [V] each
            self.register_buffer(name, table, persistent=False)
        self.fused_head = self._head_is_plain()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The Hugging Face model itself, LoRA layers inside it if there are any."""
        return self.lm.get_base_model() if self.has_lora else self.lm

    @property
    def has_lora(self) -> bool:
        return hasattr(self.lm, "peft_config")

    @property
    def head(self) -> nn.Module:
        head = self.causal_lm.get_output_embeddings()
        assert head is not None  # of a causal LM
        return head

    @property
    def head_weight(self) -> Tensor:
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Log-probs of the completion tokens, and the entropy at each: two float32 tensors [B, T], 0 off the mask.

        No logits are computed for prompt tokens.
        """
        ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)  # [B, S+T]
        attention = torch.cat([batch.prompt_mask, batch.mask], 1)
        inputs = {
            "input_ids": ids,
            "attention_mask": attention,
            "position_ids": position_ids(attention),
            "use_cache": False,
        }
        on = batch.mask.bool()
        targets = batch.completion_ids[on]  # [M]
        t = batch.completion_ids.shape[1]
        if self.fused_head:
            hidden = self.causal_lm.get_decoder()(**inputs).last_hidden_state[:, -t - 1 : -1]  # [B, T, H]
            logps, entropy = token_logprobs(hidden[on], self.head_weight, targets, self.temperature)
        else:
            logits = self.causal_lm(**inputs, logits_to_keep=t + 1).logits[:, :-1][on]  # [M, V]
            log_p = torch.log_softmax(logits.float() / self.temperature, -1)
            logps = log_p.gather(1, targets[:, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(-1).detach()
        return _spread(logps, on), _spread(entropy, on)

    def score(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """`forward`, entered through the module that holds the policy's shards where there is one: it gathers them."""
        return self.shard_root[0](batch) if self.shard_root else self(batch)

    def text(self, ids: Sequence[int]) -> str:
        """A completion as text, its final EOS left out.

        Other special tokens stay visible: to drop them would shift lines against the ranks of their tokens.
        """
        ids = list(ids)
        if ids and ids[-1] in self.eos_ids:
            ids = ids[:-1]
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a list of texts for a list of lists only
        return text

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode and no gradients, restored afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def reference(self) -> "Reference":
        """The policy as it is now, to measure KL against: the base under LoRA, otherwise a frozen copy."""
        return Reference(self)

    def save(
        self, folder: Path, dtype: torch.dtype | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:  # fmt: skip
        """Write a plain Hugging Face folder (safetensors, tokenizer); LoRA is merged into the weights written.

        weights: what to write where this process does not hold it, named as in the model's checkpoint.
        """
        lm = self.causal_lm
        if weights is None:
            lm = copy.deepcopy(self.lm).merge_and_unload() if self.has_lora else self.lm
        whole: Mapping[str, Tensor] = lm.state_dict() if weights is None else weights
        state = {name: t.detach().to("cpu", dtype) for name, t in whole.items()}
        lm.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Whether hidden states times the head's weights are the model's logits: no bias, soft cap or scale between."""
        if getattr(self.head, "bias", None) is not None or type(self.head) is not nn.Linear:
            return False
        training = self.training
        self.eval()
        ids = torch.arange(8, device=self.device)[None] % self.head_weight.shape[0]
        hidden = self.causal_lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        plain = hidden @ self.head_weight.T
        logits = self.causal_lm(input_ids=ids, use_cache=False).logits
        self.train(training)
        return torch.allclose(plain.float(), logits.float(), rtol=1e-3, atol=1e-3)


class Reference:
    """Log-probs under the policy as it was when this was made. Not a module: no optimizer or checkpoint holds it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._frozen = None if policy.has_lora else copy.deepcopy(policy).requires_grad_(False).eval()

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[B, T], without gradients."""
        if self._frozen is not None:
            self._frozen.to(batch.mask.device)
            with torch.no_grad():
                return self._frozen(batch)[0]
        with self._policy.inference(), self._policy.lm.disable_adapter():
            return self._policy.score(batch)[0]


def position_ids(attention: Tensor) -> Tensor:
    """Positions that do not count padding, [B, L]."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def token_tables(
    tokenizer: PreTrainedTokenizerBase, size: int, eos_ids: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """For each id of the vocabulary: has a newline; is white space only; ends a completion. BoolTensor [V] each.

    Special tokens are text of no kind that a list holds, but they are not white space: they do not make a line blank.
    Ids past the tokenizer's own (a padded embedding) count as text.
    """
    newline, blank, eos = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    special = set(tokenizer.all_special_ids)
    known = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
    for i, text in enumerate(texts):
        if i not in special:
            newline[i] = "\n" in text
            blank[i] = bool(text) and not text.strip(WHITESPACE)
    eos[[i for i in eos_ids if i < size]] = True
    return newline, blank, eos


def _eos_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion, the tokenizer's own first."""
    configured = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    configured = configured if isinstance(configured, list) else [configured]
    ids = [special_id(tokenizer, "eos"), *configured]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _spread(values: Tensor, on: Tensor) -> Tensor:
    return values.new_zeros(on.shape).masked_scatter(on, values)
