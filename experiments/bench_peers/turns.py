"""What both peers share: options, turns and measurements. Standard library only: it runs in two environments.

A peer is a process that trains one case. It waits for a line on its standard input before each step, makes the step, and
prints a JSON line with its measurements. So two peers take turns, and what else the machine does falls on both.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

KIB = 1024


def options(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every peer has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path, required=True, help="folder that workload.py wrote")
    parser.add_argument("--tokens", type=int, required=True, help="length of the prompts")
    parser.add_argument("--group", type=int, required=True, help="lists of a prompt")
    parser.add_argument("--prompts", type=int, required=True, help="prompts of a step")
    parser.add_argument("--new-tokens", type=int, required=True, help="tokens of a list")
    parser.add_argument("--steps", type=int, required=True, help="steps, the first ones to warm up included")
    parser.add_argument("--seed", type=int, required=True)
    return parser


def read_prompts(workload: Path, tokens: int) -> list[dict[str, Any]]:
    """Return the prompts of a length: dicts of text, ids, message, ground_truth and seen."""
    return json.loads((workload / f"prompts-{tokens}.json").read_text(encoding="utf-8"))


class Turns:
    """The line to the driver: what the process prints goes to standard error, the measurements go to standard output."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._start = 0.0

    def ready(self, **about: Any) -> None:
        """Report that everything is loaded. about: what the driver records of the peer."""
        self._write({"event": "ready", "resident_mib": resident_mib(), **about})

    def begin(self) -> None:
        """Wait for the driver, then start the clock. If the driver is gone, end the process."""
        if not sys.stdin.readline():
            os._exit(0)
        self._start = time.perf_counter()

    def end(self, **measured: float) -> None:
        """Stop the clock and report a step. measured: its parts in seconds, its new tokens, and its memory."""
        seconds = time.perf_counter() - self._start
        self._write({"event": "step", "seconds": seconds, "peak_mib": peak_mib(), **measured})

    def _write(self, event: dict[str, Any]) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()


def peak_mib() -> float:
    """Return the peak of this process's resident memory so far."""
    return _status("VmHWM") / KIB


def resident_mib() -> float:
    """Return this process's resident memory."""
    return _status("VmRSS") / KIB


def reset_peak() -> None:
    """Let the peak begin again at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    """Return an entry of /proc/self/status in KiB. Not getrusage, whose peak a process inherits from its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}: this bench runs on Linux")
