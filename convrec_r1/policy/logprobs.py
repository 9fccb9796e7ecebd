"""Log-probs and entropy of given tokens without a [tokens, vocabulary] matrix in memory."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

CHUNK = 16_384
"""Vocabulary entries per chunk. 151,936 of them (Qwen2.5) take ten chunks of 64 MB per 1,000 tokens in fp32."""


def token_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    temperature: float,
    chunk: int = CHUNK,
) -> tuple[Float32[Tensor, " tokens"], Float32[Tensor, " tokens"]]:
    """Return log softmax(hidden weight^T / temperature) at `targets`, and the entropy of that distribution.

    The backward pass recomputes the logits of each chunk instead of storing them.

    Args:
        hidden: [M, H], hidden states.
        weight: [V, H], weights of the head.
        targets: LongTensor [M], token ids.
        temperature: divides the logits.
        chunk: vocabulary entries per chunk; the result does not depend on it.
    Returns:
        Log-probs and entropy, float32 [M] each. Only the log-probs have gradients (to `hidden` and `weight`).
    """
    return _TokenLogProbs.apply(hidden, weight, targets, 1.0 / temperature, chunk)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        x = hidden.to(dtype)
        m = hidden.shape[0]
        top = torch.full((m,), -torch.inf, device=hidden.device)  # running maximum of the logits
        total = torch.zeros(m, device=hidden.device)  # sum of exp(z - top)
        weighted = torch.zeros(m, device=hidden.device)  # sum of z exp(z - top)
        target = torch.zeros(m, device=hidden.device)
        for start in range(0, weight.shape[0], chunk):
            z = _logits(x, weight[start : start + chunk], scale)  # [M, C]
            new_top = torch.maximum(top, z.max(-1).values)
            rescale = (top - new_top).exp()
            p = (z - new_top[:, None]).exp()
            total = total * rescale + p.sum(-1)
            weighted = weighted * rescale + (p * z).sum(-1)
            here, column = _locate(targets, start, z.shape[1])
            target = torch.where(here, z.gather(1, column[:, None])[:, 0], target)
            top = new_top
        log_z = top + total.log()
        ctx.save_for_backward(x, weight, targets, log_z)
        ctx.scale, ctx.chunk, ctx.hidden_dtype = scale, chunk, hidden.dtype
        entropy = log_z - weighted / total
        ctx.mark_non_differentiable(entropy)
        return target - log_z, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        grad, _ = grad_outputs  # the entropy is not differentiable
        x, weight, targets, log_z = ctx.saved_tensors
        grad_hidden = torch.zeros(x.shape, device=x.device) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, weight.shape[0], ctx.chunk):
            part = weight[start : start + ctx.chunk]
            p = (_logits(x, part, ctx.scale) - log_z[:, None]).exp_()
            dz = p.mul_(-grad[:, None])
            here, column = _locate(targets, start, part.shape[0])
            dz.scatter_add_(1, column[:, None], torch.where(here, grad, 0.0)[:, None])
            dz = dz.mul_(ctx.scale).to(x.dtype)
            if grad_hidden is not None:
                grad_hidden += dz @ part.to(x.dtype)
            if grad_weight is not None:
                grad_weight[start : start + ctx.chunk] = dz.T @ x
        return grad_hidden if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype), grad_weight, None, None, None


def _logits(x: Tensor, weight: Tensor, scale: float) -> Float32[Tensor, "tokens columns"]:
    return (x @ weight.to(x.dtype).T).float() * scale


def _locate(targets: Tensor, start: int, width: int) -> tuple[Bool[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Return whether each target is in this chunk, and its column (an arbitrary one if it is not)."""
    column = targets - start
    return (column >= 0) & (column < width), column.clamp(0, width - 1)
