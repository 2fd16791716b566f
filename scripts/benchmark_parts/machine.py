"""How busy the machine is with other things while something is measured, and what the processes of ours hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Others:
    """A stretch of time; afterwards ``share`` is the part of all cores that processes not of ours were using.

    Ours are this process and all that it started. None without a /proc.
    """

    share: float | None = None

    def __enter__(self) -> Self:
        self._started, self._busy, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._started
        busy, own = _busy_seconds(), _own_seconds()
        if busy is not None and self._busy is not None:
            foreign = (busy - self._busy) - (own - self._own)
            self.share = max(0.0, foreign / seconds / (os.cpu_count() or 1))


def settle(longest: float = 15.0, quiet: float = 0.1) -> None:
    """Wait until the cores have been idle but for ``quiet`` of them for half a second, or ``longest`` seconds.

    What a variant leaves behind, and vLLM's scheduler, which spins for a second after its last step, must not count for
    the next one. Returns at once without a /proc.
    """
    last = time.monotonic() + longest
    while (before := _busy_seconds()) is not None and time.monotonic() < last:
        time.sleep(0.5)
        if ((_busy_seconds() or 0.0) - before) / 0.5 / (os.cpu_count() or 1) < quiet:
            return


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started."""
    if not (PROC / "stat").exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, (PROC / "stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICK


def _own_seconds() -> float:
    total = 0
    for folder in own_processes():
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it ended meanwhile
            continue
        total += sum(map(int, fields[11:15]))  # its own, and of those that it started and that ended
    return total / TICK


def own_processes() -> Iterator[Path]:
    """The folders in /proc of this process and of all that it started and that still run."""
    parents: dict[int, int] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    for each in parents:
        above = each
        while above and above != os.getpid():
            above = parents.get(above, 0)
        if above:
            yield PROC / str(each)


def started_processes_peak_mib() -> float:
    """The peaks of all processes that this one started and that still run, added up, in MiB; 0 without a /proc."""
    total = 0.0
    for folder in own_processes():
        if int(folder.name) == os.getpid():
            continue
        try:
            lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        except OSError:
            continue
        total += int(lines.get("VmHWM", "0 kB").split()[0]) / 1024
    return total
