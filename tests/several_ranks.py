"""Trains the tiny policy as one rank of as many as the environment says.

Used as ``-m tests.several_ranks MODEL_DIR RUN_DIR OPTIONS``, alone or under a launcher. OPTIONS is JSON: ``algorithm``;
``deepspeed``: its file; ``url``: a vLLM server's (none: an engine in each rank); ``dies``: [rank, step, how], what
becomes of a rank while the dialogues of a step are scored; ``resume``; ``timeout`` of the ranks, in seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.trajectory import Score, Trajectory
from tests.integration.test_ppo import CREDIT, PPO, by_turn
from tests.tiny_policy import ByteClient, a_card, a_spec, kind_templates
from trainers.credit import GroupRelative
from trainers.ranks import together, world_size
from trainers.rollouts import Reward
from trainers.train import TrainSettings, train
from trainers.transformers_engine import TransformersEngine
from trainers.vllm_server import VllmServer

# AdamW divides a gradient by its size, so that the rounding of a gradient near 0 becomes a step of another size. With
# so much added to the size, what is rounded in a gradient stays what is rounded in its step.
ADAM_EPSILON = 1e-2
LEARNING_RATE = 3e-2  # to move as far as the tests of one process do, in spite of it


class Broken(BaseException):
    """Stands for what no one catches."""


def settings_of(options: dict[str, Any]) -> TrainSettings:
    """Two passes a step over all of its dialogues, each in four micro-batches, which two ranks have half of each.

    An update takes the whole batch: with ``minibatches`` each rank would cut its own rows, and two ranks put other
    dialogues together than one.
    """
    grpo = {"beta": 0.04, "loss_type": "grpo"} if options["algorithm"] == "grpo" else {}
    return replace(
        PPO,
        cards_per_step=4,
        group_size=4,
        micro_batch=4 // world_size(),
        minibatches=1,
        iterations=2,
        learning_rate=LEARNING_RATE,
        adam_epsilon=ADAM_EPSILON,
        deepspeed=Path(options["deepspeed"]) if options.get("deepspeed") else None,
        **grpo,
    )


def dying(rank: int, step: int, how: str) -> Reward:
    """The reward of a rank that breaks, or is killed, before it has scored a step's first dialogue."""

    async def reward(trajectory: Trajectory) -> Score:
        if os.environ.get("RANK") == str(rank) and trajectory.dialogue_id.startswith(f"{step:06d}-"):
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Broken("the scorer broke on purpose")
        return await by_turn(trajectory)

    return reward


def main(model_dir: Path, run_dir: Path, options: dict[str, Any]) -> None:
    """The same batches of dialogues, whatever the number of ranks."""
    with together(options.get("timeout", 240.0), on_gpu=False):
        url = options.get("url")
        train(
            settings_of(options),
            model_dir=model_dir,
            run_dir=run_dir,
            server=VllmServer.connect([url]) if url else TransformersEngine(model_dir),
            templates=kind_templates(model_dir),
            cards=[a_card()],
            spec=a_spec(2),
            make_client=ByteClient,
            reward=dying(*options["dies"]) if options.get("dies") else by_turn,
            credit=CREDIT if options["algorithm"] == "ppo" else GroupRelative(4),
            resume=options.get("resume", False),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
