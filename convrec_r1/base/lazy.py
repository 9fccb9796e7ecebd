"""Lazy public names of a package: a submodule is imported when one of its names is first used.

Reading the options of a package (its config.py) must not import torch.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, **modules: Sequence[str]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` (PEP 562) for `package`.

    modules: submodule -> the public names that it defines.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
