"""Ranks whose rows differ in length take the same number of passes, and share their gradients once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


def stepped(folder: Path, budget: int) -> tuple[list[dict[str, Any]], list[dict[str, Tensor]]]:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "tests.uneven_ranks", str(folder), str(budget)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((folder / f"seen-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    return seen, [load_file(folder / f"gradients-{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.slow
def test_a_rank_of_short_rows_takes_as_many_passes_as_one_of_long_rows(tmp_path: Path):
    whole, gradients = stepped(tmp_path / "whole", 0)
    parted, others = stepped(tmp_path / "parted", 400)
    assert [one["course"].count("backward") for one in whole] == [1, 1]
    passes = [one["course"].count("backward") for one in parted]
    assert passes[0] == passes[1] > 1
    assert len(parted[0]["course"]) == len(parted[1]["course"])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradient == gradients[1][name]).all() and (others[0][name] == others[1][name]).all()
        assert float((gradient - others[0][name]).abs().max()) < 1e-4 * largest, name
    assert parted[0]["logged"] == pytest.approx(whole[0]["logged"], rel=1e-3, abs=1e-6)
