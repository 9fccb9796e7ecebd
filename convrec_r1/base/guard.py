"""A script that runs a command until its parent process ends: guard.py PARENT SCRATCH COMMAND...

Without it, a server would keep running (and its memory stay allocated) after its trainer was killed, and so would the child
processes of a killed server. The guard leads a process group and ends it when the command or the parent has ended. If the
parent, a process id, is gone, it also removes the folder SCRATCH.
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
    # The command receives the signal as well. A handler, because children would inherit SIG_IGN.
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
