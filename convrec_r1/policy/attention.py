"""Attention over layouts of ours: rows of tokens that are no rectangle of sequences.

transformers lets a model's attention be any registered function. Ours is its `sdpa` unless the forward pass is given a
`layout`, which then says what attends to what. So completions share their prompt without another class of model.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "convrec_r1"
"""`attn_implementation` of the models that take a layout."""
_REFUSED = ("softcap", "s_aux", "position_bias", "output_attentions")
"""Arguments of some models' attention that a layout does not know. They are None or False elsewhere."""


class Layout(Protocol):
    """What attends to what in one forward pass. A plain class: FSDP would rebuild dataclasses and tuples."""

    longest: int
    """Tokens of the longest sequence, prompt and completion together."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """Return the attention's output [b, t, H, D].

        Args:
            layer: index of the layer.
            query: [b, H, t, D], rotated to their positions, like the keys.
            key, value: [b, K, t, D] of the same tokens; H is a multiple of K.
            scale: of the scores.
        """
        ...


class Unsupported(Exception):
    """The model's attention does more than a layout can."""


def hidden_states(lm: PreTrainedModel, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Return the decoder's last hidden states [b, t, H] of tokens that attend as `layout` says.

    Args:
        lm: a model whose attention is `NAME` (`take_layouts`).
        ids, positions: LongTensor [b, t].
    """
    decoder: Any = lm.get_decoder()
    # A mask of four dimensions is the caller's own for transformers, which then makes none.
    mask = torch.zeros(1, 1, 1, 1, device=ids.device)
    output = decoder(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, layout=layout)
    return output.last_hidden_state


def take_layouts(lm: PreTrainedModel) -> bool:
    """Set the model's attention to ours. Return whether it is: only if it was `sdpa`, and has no dropout of its own."""
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation == NAME:
        return True
    if config._attn_implementation != "sdpa" or not kinds <= {"full_attention", "sliding_attention"}:
        return False
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0):
        return False
    try:
        lm.set_attn_implementation(NAME)
    except ValueError:
        return False
    return config._attn_implementation == NAME


def window_of(lm: PreTrainedModel) -> int | None:
    """Return the tokens that attention looks back at most, in any layer. None: all."""
    config = lm.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    used = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if used else None


def grouped(query: Tensor, key: Tensor) -> Tensor:
    """Return keys (or values) [b, K, t, D] with each head repeated for its queries, [b, H, t, D]."""
    b, heads, t, width = key.shape
    times = query.shape[1] // heads
    return key if times == 1 else key[:, :, None].expand(b, heads, times, t, width).reshape(b, heads * times, t, width)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    layout: Layout | None = None, dropout: float = 0.0, scaling: float | None = None, **given: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
    window = given.get("sliding_window")
    if dropout or any(given.get(name) for name in _REFUSED) or (window is not None and window < layout.longest):
        raise Unsupported(f"{type(module).__name__} has attention of its own kind")
    layer: Any = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(layer, query, key, value, scale=scale), None


def keep_out_of_graphs() -> None:
    """Compute attention between compiled graphs, not in them: a layout's indices would be part of a graph, and make it anew."""
    AttentionInterface.register(NAME, torch.compiler.disable(_attention))


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
