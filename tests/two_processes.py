"""Trains the tiny policy in as many processes as torchrun starts, and writes each step's numbers as JSON lines.

Used as ``torchrun --nproc_per_node 2 -m tests.two_processes ALGORITHM MODEL_DIR RUN_DIR``, or alone as one process.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from tests.integration.test_ppo import CREDIT, PPO, by_turn
from tests.tiny_policy import ByteClient, a_card, a_spec, kind_templates
from trainers.credit import GroupRelative
from trainers.train import train
from trainers.transformers_engine import TransformersEngine


def main(algorithm: str, model_dir: Path, run_dir: Path) -> None:
    """Three steps on the same global batch, whatever the number of processes: one update on all of it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings = replace(PPO, cards_per_step=2, group_size=4, micro_batch=4 // world, minibatches=1)
    if algorithm == "grpo":
        settings = replace(settings, beta=0.04)
    train(
        settings,
        model_dir=model_dir,
        run_dir=run_dir,
        server=TransformersEngine(model_dir),
        templates=kind_templates(model_dir),
        cards=[a_card()],
        spec=a_spec(2),
        make_client=ByteClient,
        reward=by_turn,
        credit=CREDIT if algorithm == "ppo" else GroupRelative(4),
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
