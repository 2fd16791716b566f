"""One process and two, over gloo, train alike on the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.integration.test_training import lines
from tests.tiny_policy import tiny_model
from trainers.train import FINAL_ADAPTER

ROOT = Path(__file__).resolve().parents[2]


def trained(algorithm: str, model_dir: Path, run_dir: Path, processes: int) -> list[dict]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.two_processes"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, algorithm, str(model_dir), str(run_dir)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return lines(run_dir / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_two_processes_have_the_losses_of_one(algorithm: str, tmp_path: Path):
    model_dir = tiny_model(tmp_path / "model")
    one = trained(algorithm, model_dir, tmp_path / "one", 1)
    two = trained(algorithm, model_dir, tmp_path / "two", 2)
    names = ["loss", "kl", "grad_norm", "mean_final_emotion", "reward", *(["value_loss"] if algorithm == "ppo" else [])]
    assert len(one) == len(two) == 3 and [line["dialogues"] for line in two] == [8, 8, 8]
    for first, second in zip(one, two, strict=True):
        assert {name: second[name] for name in names} == pytest.approx({name: first[name] for name in names}, abs=1e-4)
    weights = [load_file(tmp_path / run / FINAL_ADAPTER / "adapter_model.safetensors") for run in ("one", "two")]
    difference = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert difference < 2e-3  # AdamW's first steps make of a rounding of a small gradient a step of another size
