"""What is done on a worker's node when the worker has failed: read its last words, and end its process."""

# Ray is optional.
# pyright: reportMissingImports=none

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convrec_r1.cluster.places import only_on
from convrec_r1.rollout.workers.worker import Identity

_PATIENCE = 5.0
"""Seconds for a task on a node, which may be gone."""
_TAIL = 2000
"""Characters of a log."""


def last_words(identity: Identity | None) -> str:
    """Return the end of a worker's log, to follow a sentence. "": there is none to be had."""
    if identity is None or identity.log is None:
        return ""
    text = _on_node(identity, _tail, identity.log)
    return f"\nIts last words:\n{text}" if text else ""


def end_process(identity: Identity | None) -> None:
    """Kill a worker's process. Ray asks it to exit, which a process that hangs may not hear."""
    if identity is not None:
        _on_node(identity, _kill, identity.pid)


def _on_node(identity: Identity, act: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function on the worker's node. Return None if that is not possible."""
    import ray

    if identity.node == ray.get_runtime_context().get_node_id():
        return act(argument)
    task = ray.remote(act).options(num_cpus=0, max_retries=0, scheduling_strategy=only_on(identity.node))
    with contextlib.suppress(Exception):  # the node is gone, or does not answer
        return ray.get(task.remote(argument), timeout=_PATIENCE)
    return None


def _tail(log: str) -> str:
    with contextlib.suppress(OSError):
        return Path(log).read_text(errors="replace")[-_TAIL:].strip()
    return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        # Ray names its processes. Another process may have got the number.
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
