"""Run a command as long as the process that asked for it lives. A script of its own: guard.py PARENT SCRATCH COMMAND...

A server outlives a trainer that is killed, and a server's own child processes outlive a server that is killed. Neither may keep
memory that the next run needs. The guard leads a process group and ends it when the command or the parent has ended. It removes
the folder SCRATCH if PARENT, a process id, is gone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

GRACE = 10
"""Seconds between SIGTERM and SIGKILL."""


def main(parent: int, scratch: str, command: list[str]) -> None:
    # The command gets the signal, too. A handler instead of SIG_IGN, which children would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
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
