"""`trainer.compile`: the decoder layers of a policy as compiled kernels (torch.compile)."""

import logging
import os
import shutil

from torch import nn

from convrec_r1.base.errors import UserError
from convrec_r1.policy.attention import keep_out_of_graphs
from convrec_r1.policy.policy import Policy

_log = logging.getLogger(__name__)
_COMPILERS = ("g++", "clang++", "cl")


def compile_layers(policy: Policy, *, backend: str = "inductor") -> None:
    """Compile the policy's decoder layers in place. Kernels are built in the first passes.

    All layers of a model share their code, so one set of kernels serves them all. Lengths are dynamic. Attention is computed
    between the kernels. `nn.Module.compile` changes how a layer is called, not the layer: the names of weights stay, and
    checkpoints of compiled and other policies are the same. Log-probs differ by float rounding.

    Args:
        backend: of torch.compile. "aot_eager" builds the graphs without kernels.
    Raises:
        UserError: the model has no list of decoder layers, or there is no C++ compiler to build kernels with.
    """
    layers = getattr(policy.causal_lm.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        name = type(policy.causal_lm).__name__
        raise UserError(f"trainer.compile=true: {name} has no list of decoder layers. Use trainer.compile=false.")
    if backend == "inductor" and not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
        raise UserError(
            "trainer.compile=true builds kernels with a C++ compiler, and none is on the PATH (g++, clang++, or CXX). Install "
            "one, or use trainer.compile=false."
        )
    keep_out_of_graphs()
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    _log.info("trainer.compile: %d decoder layers. The first steps take longer: they build the kernels.", len(layers))
