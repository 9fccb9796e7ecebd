"""The rollouts of one step as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convrec_r1.policy import Policy, TokenBatch
from convrec_r1.policy.allowed import Allowed
from convrec_r1.rl import list_lengths, segment_ranks
from convrec_r1.rollout.base import Completion
from convrec_r1.rollout.constraint import Constraint, Opening
from convrec_r1.rollout.lines import thought_tokens


@dataclass
class RolloutBatch:
    """B = P x G completions, groups contiguous; everything on one device."""

    tokens: TokenBatch
    sampled_logps: Float[Tensor, "batch tokens"]  # of the sampler
    ranks: Int[Tensor, "batch tokens"]  # -1 off the mask
    lengths: Int[Tensor, " batch"]  # lines with text
    is_eos: Bool[Tensor, "batch tokens"]
    truncated: Bool[Tensor, " batch"]  # reached the limit without EOS
    trained: Int[Tensor, "batch tokens"]  # the mask of the loss: `mask`, without completions that are left out of it

    @property
    def mask(self) -> Int[Tensor, "batch tokens"]:
        return self.tokens.mask


def make_batch(
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Completion]],
    policy: Policy,
    *,
    mask_truncated: bool = False,
    count_blank_lines: bool = False,
    constraint: Constraint | None = None,
    openings: Sequence[Opening] = (),
) -> RolloutBatch:
    """Pad P prompts with G completions each, and segment the completions into ranks.

    Thoughts hold no ranks: their tokens are blank, and go with the rank that follows.

    Args:
        mask_truncated, count_blank_lines: `algo.mask_truncated` and `algo.count_blank_lines`.
        constraint: that the completions were held to. None: to nothing.
        openings: [P], what the completions of each prompt could hold.
    """
    completions = [c for group in groups for c in group]
    each = len(groups[0])
    tokens = TokenBatch.collate(prompts, [c.ids.tolist() for c in completions], policy.pad_id, each=each).to(
        policy.device
    )
    if constraint is not None:
        lists = ((opening, c.ids) for opening, group in zip(openings, groups, strict=True) for c in group)
        sets = [list(constraint.replay(opening, ids.tolist())) for opening, ids in lists]
        tokens.allowed = Allowed.collate(sets, tokens.mask.shape[1]).to(policy.device)
    sampled = torch.zeros(tokens.mask.shape)
    for i, completion in enumerate(completions):
        sampled[i, : len(completion.logprobs)] = torch.from_numpy(completion.logprobs)
    ids, mask = tokens.completion_ids, tokens.mask
    # One more token id, which is blank, stands for thoughts.
    newline, blank, opens, eos = (
        torch.nn.functional.pad(table, (0, 1), value=value)
        for table, value in ((policy.newline, False), (policy.blank, True), (policy.opens, False), (policy.eos, False))
    )
    written = ids.clone()
    for row, completion in zip(written, completions, strict=True):
        row[thought_tokens(completion.ids.tolist(), policy.text)] = len(policy.blank)
    ranks = segment_ranks(written, mask, newline, torch.zeros_like(blank) if count_blank_lines else blank, opens)
    truncated = torch.tensor([c.finish_reason == "length" for c in completions], device=policy.device)
    return RolloutBatch(
        tokens=tokens,
        sampled_logps=sampled.to(policy.device),
        ranks=ranks,
        lengths=list_lengths(written, ranks, blank, eos, opens),
        is_eos=policy.eos[ids] & mask.bool(),
        truncated=truncated,
        trained=torch.where(truncated[:, None], 0, mask) if mask_truncated else mask,
    )
