"""Check the jaxtyping annotations (shape, dtype) of some modules while tests run."""

from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ANNOTATED = ("convrec_r1.rl", "convrec_r1.reward", "convrec_r1.policy.logprobs", "convrec_r1.rollout.batch")

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for type checkers


def tensors(function: Any) -> Any:
    """Apply beartype to tensors only. The functions check arguments such as kind="mask" themselves, and tests rely on it."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if "Tensor" in str(hint)}
    return _check(function)


def install() -> None:
    """Install the checks. Call it before the annotated modules are imported."""
    install_import_hook(ANNOTATED, f"{__name__}.tensors")
