"""Runs a server as the leader of its own process group and ends the whole group when the run that wanted it is gone.

Used as ``python supervise.py PARENT_PID COMMAND...`` in a new session. The parent's death is seen by polling: a death
signal is tied to the parent's thread, and a pipe stays open in every process that inherited it. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Run ``command`` until it ends, SIGTERM comes, or ``parent`` is no longer our parent; then end the group."""
    asked_to_stop = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, stop)
    child = subprocess.Popen(command, preexec_fn=_die_with_the_supervisor)
    while child.poll() is None and not asked_to_stop and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    if child.returncode is not None:
        sys.stderr.write(f"the server ended by itself with status {child.returncode}\n")
        sys.stderr.flush()
    _end_group(child)


def _die_with_the_supervisor() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, wait a little, then kill what is left of it, this process included."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
