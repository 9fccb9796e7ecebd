"""Map tokens to ranks: the line of the list that each token belongs to."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def segment_ranks(
    completion_ids: Int[Tensor, "batch tokens"],
    mask: Shaped[Tensor, "batch tokens"],
    newline: Bool[Tensor, " vocab"],
    blank: Bool[Tensor, " vocab"],
    opens: Bool[Tensor, " vocab"] | None = None,
) -> Int[Tensor, "batch tokens"]:
    """Return the rank of each completion token, counted from 0.

    A token that contains a newline belongs to the rank that it ends; the next token starts the next rank. Blank lines have
    no rank: a newline ends a rank only if the rank has a token that is not white space. EOS is treated like any token: after
    text it belongs to the rank of that text, after a newline it starts the next rank.

    Args:
        completion_ids: LongTensor [B, T].
        mask: [B, T], nonzero on tokens of the completion.
        newline: BoolTensor [V], whether a token contains a newline.
        blank: BoolTensor [V], whether a token is white space only, up to its first newline.
        opens: BoolTensor [V], whether a token has text after its last newline: text of the next rank. None: no token has.
    Returns:
        LongTensor [B, T]. Ranks have no upper bound; those >= N are overflow. -1 off the mask.
    """
    mask = mask.bool()
    is_newline = newline[completion_ids] & mask  # [B, T]
    is_text = ~blank[completion_ids] & mask
    texts = is_text.long().cumsum(-1)
    if opens is not None:  # counted after the token's own newline
        later = (opens[completion_ids] & mask).long()
        texts = texts + later.cumsum(-1) - later
    # A newline ends a rank if there is text since the newline before it. `texts` never decreases, so a running maximum
    # carries its value at the last newline forward.
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
    opens: Bool[Tensor, " vocab"] | None = None,
) -> Int[Tensor, " batch"]:
    """Return the number of lines with text in each completion. An EOS alone on its line is no text.

    Args:
        completion_ids: LongTensor [B, T].
        ranks: LongTensor [B, T] from `segment_ranks`.
        blank, opens: BoolTensor [V], as for `segment_ranks`.
        eos: BoolTensor [V], whether a token ends a completion.
    Returns:
        LongTensor [B].
    """
    is_text = ~(blank | eos)[completion_ids] & (ranks >= 0)
    lines = torch.where(is_text, ranks, -1)
    following = torch.nn.functional.pad(ranks[:, 1:], (0, 1), value=-1)[:, : ranks.shape[1]]
    opened = opens[completion_ids] & (ranks >= 0) if opens is not None else torch.zeros_like(is_text)
    lines = torch.maximum(lines, torch.where(opened, following, -1))  # text after a newline has the next token's rank
    last = torch.nn.functional.pad(lines, (0, 1), value=-1).amax(-1)  # padded because T may be 0
    # Without a next token it is a line of its own, after the one that the newline closed.
    end = torch.nn.functional.pad(torch.where(opened & (following < 0), ranks, -1), (0, 1), value=-1).amax(-1)
    return torch.maximum(last, torch.where(end >= 0, end + (last == end).long(), -1)) + 1
