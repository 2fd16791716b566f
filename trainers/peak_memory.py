"""The most memory that training took, measured: beside the estimate of ``trainers.memory`` in the run's summary.

On a GPU, the bytes that torch had allocated there and, with what its allocator held back, reserved; on a CPU, the
resident set of the training process, libraries included. With several ranks each number is the largest of them. What an
engine process takes is not counted, nor the warm start, which ends before.
"""

from __future__ import annotations

import json
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trainers.manifest import write_json
from trainers.memory import MEASURED

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def begin() -> None:
    """From here on count anew, as far as the machine lets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        RESET.write_text("5", encoding="ascii")  # the high-water mark of the resident set


def peak(on_gpu: bool) -> dict[str, int]:
    """Bytes at the peak since ``begin``: allocated and reserved on this rank's GPU, or resident in this process."""
    if on_gpu:
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    with suppress(OSError):
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return {"resident": int(line.split()[1]) * 1024}
    return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def record(run_dir: Path, ranks: list[dict[str, int]]) -> None:
    """Write the largest of all ranks' numbers; a run that was resumed keeps the larger one of its parts."""
    path = run_dir / MEASURED
    if path.exists():
        ranks = [*ranks, json.loads(path.read_text(encoding="utf-8"))]
    names = ranks[0]
    found: dict[str, Any] = {name: max(rank.get(name, 0) for rank in ranks) for name in names}
    write_json(path, found)
