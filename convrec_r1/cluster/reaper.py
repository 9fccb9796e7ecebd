"""A script that waits until its parent process ends, then ends the Ray in FOLDER: reaper.py PARENT FOLDER.

Ray's own processes end with the process that started Ray, but its agents wait a minute for a GCS server that is gone, and its
folder of logs and sockets stays. Imports the standard library only: it runs as a script, without the package.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def users(folder: str) -> set[int]:
    """Return the ids of other processes that have a file open in `folder`. On Linux only: empty elsewhere."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if any(os.readlink(handle).startswith(f"{folder}/") for handle in (process / "fd").iterdir()):
                found.add(int(process.name))
    return found - {os.getpid()}


def end(folder: str) -> None:
    """Kill the other processes that have a file open in `folder`, and remove it."""
    for _ in range(10):  # a process may have started another in the meantime
        left = users(folder)
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def main(parent: int, folder: str) -> None:
    """Wait and end it."""
    while os.getppid() == parent:
        time.sleep(0.2)
    end(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
