"""`trainer.compile`: the decoder layers of a policy as compiled kernels (torch.compile)."""

import logging

from torch import nn

from convrec_r1.base.errors import UserError
from convrec_r1.policy.attention import keep_out_of_graphs
from convrec_r1.policy.policy import Policy

_log = logging.getLogger(__name__)


def compile_layers(policy: Policy) -> Policy:
    """Compile the policy's decoder layers in place. Kernels are built in the first passes, which takes minutes on a GPU.

    Each layer compiles by itself: all layers of a model share their code, so one set of kernels serves them all. Lengths are
    dynamic. Attention stays as it is: it is a kernel already. `nn.Module.compile` changes how a layer is called, not the layer: names of weights stay, and checkpoints of
    compiled and uncompiled policies are the same. Log-probs differ by float rounding.

    Raises:
        UserError: the model has no list of decoder layers.
    """
    layers = decoder_layers(policy)
    if layers is None:
        name = type(policy.causal_lm).__name__
        raise UserError(f"trainer.compile=true: {name} has no list of decoder layers to compile. Use trainer.compile=false.")
    keep_out_of_graphs()
    for layer in layers:
        layer.compile(dynamic=True)
    _log.info("torch.compile: %d decoder layers; the first steps build their kernels.", len(layers))
    return policy


def decoder_layers(policy: Policy) -> nn.ModuleList | None:
    """Return the list of decoder layers of the policy's model, without LoRA's wrapper."""
    layers = getattr(policy.causal_lm.get_decoder(), "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else None
