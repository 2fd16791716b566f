"""A server is gone, with all its children, however the run that started it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers import supervise

# Writes the ids of the supervisor, the server and the server's child, then waits.
SERVER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
with open(sys.argv[1] + ".tmp", "w") as file:
    file.write(f"{os.getppid()} {os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(100)
"""
PARENT = """
import os, subprocess, sys, time
command = [sys.executable, sys.argv[1], str(os.getpid()), sys.executable, "-c", sys.argv[2], sys.argv[3]]
supervisor = subprocess.Popen(command, start_new_session=True)
time.sleep(100)
"""


@pytest.fixture
def family(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """The parent, and the ids of supervisor, server and grandchild."""
    ids = tmp_path / "ids"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, supervise.__file__, SERVER, str(ids)])
    deadline = time.monotonic() + 20
    while not ids.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return parent, [int(part) for part in ids.read_text(encoding="utf-8").split()]


def alive(process_id: int) -> bool:
    """Whether the process runs; one that is dead and waits to be collected does not."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def all_gone(process_ids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(alive, process_ids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, process_ids))


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_run_dies_the_server_and_its_children_are_gone_within_seconds(family, how):
    parent, ids = family
    assert all(map(alive, ids))
    parent.send_signal(how)
    parent.wait()
    assert all_gone(ids, within=8)


def test_when_the_supervisor_is_asked_to_stop_the_whole_group_ends(family):
    parent, ids = family
    os.kill(ids[0], signal.SIGTERM)
    assert all_gone(ids, within=8)
    parent.kill()
    parent.wait()


def test_the_server_does_not_outlive_a_supervisor_that_was_killed(family):
    parent, ids = family
    os.kill(ids[0], signal.SIGKILL)
    assert all_gone(ids[:2], within=5)
    os.kill(ids[2], signal.SIGKILL)
    parent.kill()
    parent.wait()
