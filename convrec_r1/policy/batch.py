"""Prompts and completions as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from convrec_r1.policy.allowed import Allowed


@dataclass
class TokenBatch:
    """P prompts, padded on the left, and B completions, padded on the right. A prompt may have several completions."""

    prompt_ids: Tensor  # [P, S]
    prompt_mask: Tensor  # [P, S]
    owner: Tensor  # [B]: prompt of each completion
    completion_ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]: 1 on tokens of the completion including EOS, 0 on padding
    allowed: Allowed | None = None
    """Tokens that might have come at each token. None: any. Log-probs and entropy are of the distribution over these."""

    @classmethod
    def collate(
        cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int, *, each: int = 1
    ) -> "TokenBatch":
        """Pad token lists to a batch. each: completions of a prompt, which stand together."""
        owner = torch.arange(len(prompts)).repeat_interleave(each)
        return cls(*pad_rows(prompts, pad, left=True), owner, *pad_rows(completions, pad))

    def to(self, device: torch.device) -> "TokenBatch":
        parts = (None if part is None else part.to(device) for part in vars(self).values())
        return TokenBatch(*parts)  # pyright: ignore[reportArgumentType]

    @property
    def prompt_lengths(self) -> Tensor:
        """[B]: tokens of each completion's prompt."""
        return self.prompt_mask.sum(-1)[self.owner]

    def joined(self) -> tuple[Tensor, Tensor]:
        """Return each prompt and its completion as one row, padded on the right only.

        A causal model needs no attention mask then: no token sees the padding after it. With padding on the left, its rows
        would attend to nothing, and for those some attention kernels return NaN gradients (cuDNN's in bf16, on an H200).

        Returns:
            ids, LongTensor [B, W], and the column at which each completion starts, LongTensor [B].
        """
        starts, lengths = self.prompt_lengths, self.mask.sum(-1)
        whole = torch.cat([self.prompt_ids[self.owner], self.completion_ids], 1)
        width = max(1, int((starts + lengths).max()))
        columns = torch.arange(width, device=whole.device)[None] + (self.prompt_ids.shape[1] - starts)[:, None]
        return whole.gather(1, columns.clamp(max=whole.shape[1] - 1)), starts

    def rows(self, index: Tensor) -> "TokenBatch":
        """Return the completions of `index` with their prompts, without the columns that are padding in all of them."""
        prompts, owner = self.owner[index].unique(return_inverse=True)
        s = max(1, int(self.prompt_mask[prompts].sum(-1).max()))
        t = max(1, int(self.mask[index].sum(-1).max()))
        kept = self.prompt_ids[prompts, -s:], self.prompt_mask[prompts, -s:]
        allowed = None if self.allowed is None else self.allowed.rows(index, t)
        return TokenBatch(*kept, owner, self.completion_ids[index, :t], self.mask[index, :t], allowed)


def pad_rows(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad token lists. Return ids and mask (1 on tokens), LongTensor [B, width], at least one column wide."""
    side = "left" if left else "right"
    tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tokens, batch_first=True, padding_value=pad, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True, padding_side=side)
    if ids.shape[1] == 0:
        ids, mask = torch.full((len(rows), 1), pad), torch.zeros(len(rows), 1, dtype=torch.long)
    return ids, mask
