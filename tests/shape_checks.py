"""While tests run, the tensors of these modules have the shapes and dtypes that they are annotated with."""

from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ANNOTATED = ("convrec_r1.rl", "convrec_r1.reward", "convrec_r1.policy.logprobs", "convrec_r1.rollout.batch")

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for type checkers


def tensors(function: Any) -> Any:
    """beartype on the tensors alone. Names, such as kind="mask", the functions check themselves; tests see that they do."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if "Tensor" in str(hint)}
    return _check(function)


def install() -> None:
    """Comes before the first import of what is annotated."""
    install_import_hook(ANNOTATED, f"{__name__}.tensors")
