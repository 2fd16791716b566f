"""From `attune train --resume` to the next step: a short run is killed after its first checkpoint and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from envs.errors import RunError
from scripts.benchmark_parts.work import spread

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = (
    "trainer.steps=2", "trainer.checkpoint_every=1", "trainer.cards_per_step=2", "trainer.dialogues_per_card=8",
    "trainer.minibatches=1", "evaluation.seeds_per_card=1",
)  # fmt: skip
POLL_SECONDS = 0.1
PATIENCE = 300.0  # seconds for any one thing to happen


def measure_resume(rounds: int) -> dict[str, Any]:
    """Seconds from the command to the end of its first step, the seconds of that step itself, and the difference."""
    found: dict[str, list[float]] = {"to_end_of_first_step": [], "step_itself": [], "before_the_step": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            run, log = Path(folder) / "run", Path(folder) / "log"
            first = _start(run, log, ())
            try:
                _wait(lambda run=run: any(run.glob("checkpoints/checkpoint-*")), first, log)
            finally:
                _kill(first)
            done = len(_steps(run))
            started = time.monotonic()
            second = _start(run, log, ("--resume",))
            try:
                _wait(lambda run=run, done=done: len(_steps(run)) > done, second, log)
                ended = time.monotonic()
            finally:
                _kill(second)
            itself = float(sum(_steps(run)[done]["seconds"].values()))
            found["to_end_of_first_step"].append(ended - started)
            found["step_itself"].append(itself)
            found["before_the_step"].append(ended - started - itself)
    return {name: spread(values) for name, values in found.items()}


def _start(run: Path, log: Path, more: tuple[str, ...]) -> subprocess.Popen[bytes]:
    given = [*OVERRIDES, f"run.name={run.name}", f"run.dir={run.parent}"]
    command = [sys.executable, "-m", "scripts.attune", "train", "--config", "configs/demo.yaml", *more, *given]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _wait(happened: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    last = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None or time.monotonic() > last:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
            raise RunError(f"the training run that was to be resumed did not get so far: {tail}")
        time.sleep(POLL_SECONDS)


def _steps(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """As a machine that goes down: at once. Its server sees that and ends itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
