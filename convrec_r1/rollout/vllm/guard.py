"""Runs a command for as long as the process that asked for it lives. A script of its own: guard.py PARENT SCRATCH COMMAND...

A server outlives a trainer that is killed, and vLLM's own processes outlive a server that is killed; none of them may
keep memory that the next run needs. Leads a process group, which ends with it. The folder SCRATCH is removed if PARENT,
a process id, is gone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

GRACE = 10
"""Seconds that the command has to end by itself."""


def main(parent: int, scratch: str, command: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command; a handler, as children would keep SIG_IGN
    child = subprocess.Popen(command)
    while child.poll() is None and os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    if os.getppid() != parent:
        shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
