"""Log-probs and entropy of given tokens without a [tokens, vocabulary] matrix in memory."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

Block = tuple[int, int]
"""Tokens and vocabulary entries whose logits are in memory at a time."""
CPU_BLOCK: Block = (256, 2048)
"""2 MiB of logits in fp32: they stay in the cache between the passes over them."""
COLUMNS = 16_384
"""Vocabulary entries of a block on GPUs, for all tokens: 64 MB of logits per 1,000 tokens."""


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    temperature: float,
    block: Block | None = None,
) -> tuple[Float32[Tensor, " tokens"], Float32[Tensor, " tokens"]]:
    """Return log softmax(hidden weight^T / temperature) at `targets`, and the entropy of that distribution.

    The backward pass recomputes the logits of each block instead of storing them.

    Args:
        hidden: [M, H], hidden states.
        weight: [V, H], weights of the head.
        targets: LongTensor [M], token ids.
        temperature: divides the logits.
        block: the result does not depend on it. None: what is fast on the device.
    Returns:
        Log-probs and entropy, float32 [M] each. Only the log-probs have gradients (to `hidden` and `weight`).
    """
    if block is None:
        block = CPU_BLOCK if hidden.device.type == "cpu" else (max(1, len(hidden)), COLUMNS)
    return _TokenLogProbs.apply(hidden, weight, targets, 1.0 / temperature, block)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, block: Block
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        x = hidden.to(dtype)
        m, (tokens, columns) = len(x), block
        log_z, target, entropy = (torch.empty(m, device=hidden.device) for _ in range(3))
        for rows in _parts(m, tokens):
            log_z[rows], target[rows], entropy[rows] = _sums(x[rows], weight, targets[rows], scale, columns)
        ctx.save_for_backward(x, weight, targets, log_z)
        ctx.scale, ctx.block, ctx.hidden_dtype = scale, block, hidden.dtype
        ctx.mark_non_differentiable(entropy)
        return target - log_z, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        grad, _ = grad_outputs  # the entropy is not differentiable
        x, weight, targets, log_z = ctx.saved_tensors
        tokens, columns = ctx.block
        grad_hidden = torch.zeros(x.shape, device=x.device) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, device=x.device) if ctx.needs_input_grad[1] else None
        scaled = grad * ctx.scale
        for rows in _parts(len(x), tokens):
            for entries in _parts(len(weight), columns):
                part = weight[entries]
                dz = _logits(x[rows], part, ctx.scale).sub_(log_z[rows, None]).exp_().mul_(-scaled[rows, None])
                here, column = _locate(targets[rows], entries)
                # One entry a row: indexing is faster than scatter_add_, which looks for entries that occur twice.
                row = torch.arange(len(column), device=x.device)
                dz[row, column] += torch.where(here, scaled[rows], 0.0)
                dz = dz.to(x.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += dz @ part.to(x.dtype)
                if grad_weight is not None:
                    grad_weight[entries] += dz.T @ x[rows]
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(ctx.hidden_dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def _sums(x: Tensor, weight: Tensor, targets: Tensor, scale: float, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithm of the sum of exp(z) over the vocabulary, z at the targets, and the entropy: [M] each."""
    top = torch.full((len(x),), -torch.inf, device=x.device)  # running maximum of the logits z
    total, weighted, target = (
        torch.zeros(len(x), device=x.device) for _ in range(3)
    )  # sums of exp(z - top), of z exp(z - top)
    for entries in _parts(len(weight), columns):
        z = _logits(x, weight[entries], scale)  # [M, C]
        new_top = torch.maximum(top, z.amax(-1))
        rescale = (top - new_top).exp()
        p = (z - new_top[:, None]).exp_()
        total = total * rescale + p.sum(-1)
        here, column = _locate(targets, entries)
        target = torch.where(here, z.gather(1, column[:, None])[:, 0], target)
        weighted = weighted * rescale + p.mul_(z).sum(-1)
        top = new_top
    log_z = top + total.log()
    return log_z, target, log_z - weighted / total


def _parts(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _logits(x: Tensor, weight: Tensor, scale: float) -> Float32[Tensor, "tokens columns"]:
    z = (x @ weight.to(x.dtype).T).float()
    return z if scale == 1.0 else z.mul_(scale)


def _locate(targets: Tensor, entries: slice) -> tuple[Bool[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Return whether each target is in this block, and its column (an arbitrary one if it is not)."""
    column, width = targets - entries.start, entries.stop - entries.start
    return (column >= 0) & (column < width), column.clamp(0, width - 1)
