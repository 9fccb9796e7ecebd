"""Tokens -> ranks: which line of the list a token writes."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def segment_ranks(
    completion_ids: Int[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    newline: Bool[Tensor, " vocab"],
    blank: Bool[Tensor, " vocab"],
) -> Int[Tensor, "batch tokens"]:
    """The rank, counted from 0, that each completion token belongs to (design section 4).

    A token with a newline belongs to the rank it ends; the next token starts the next rank. Blank lines hold no rank:
    a newline closes a rank only if the rank has a token that is not white space. EOS is a token like any other: after
    text it belongs to that text's rank, after a newline it opens the next one.

    completion_ids: LongTensor [B, T].  mask: [B, T], nonzero on tokens of the completion.
    newline, blank: BoolTensor [V]: the token has a newline; the token is white space only.
    Returns LongTensor [B, T]: ranks count up without bound (those >= N are the overflow bin); -1 off the mask.
    """
    mask = mask.bool()
    is_newline = newline[completion_ids] & mask  # [B, T]
    is_text = ~blank[completion_ids] & mask
    texts = is_text.long().cumsum(-1)
    # Text since the last newline is text since the last *closing* newline: one that closed nothing had no text before
    # it. `texts` never falls, so a running maximum carries its value at the last newline forward.
    at_last_newline = torch.where(is_newline, texts, 0).cummax(-1).values
    before = torch.nn.functional.pad(at_last_newline[..., :-1], (1, 0))
    closes = is_newline & (texts > before)
    ranks = closes.long().cumsum(-1) - closes.long()
    return torch.where(mask, ranks, -1)


def list_lengths(
    completion_ids: Int[Tensor, "batch tokens"],
    ranks: Int[Tensor, "batch tokens"],
    blank: Bool[Tensor, " vocab"],
    eos: Bool[Tensor, " vocab"],
) -> Int[Tensor, " batch"]:
    """Lines that hold text, per completion: LongTensor [B].

    An EOS alone on its line, after a closing newline, makes no rank.
    completion_ids, ranks: [B, T].  blank, eos: BoolTensor [V].
    """
    is_text = ~(blank | eos)[completion_ids] & (ranks >= 0)
    ranks = torch.nn.functional.pad(torch.where(is_text, ranks, -1), (0, 1), value=-1)  # T may be 0
    return ranks.amax(-1) + 1
