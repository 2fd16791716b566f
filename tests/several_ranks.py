"""Trains the tiny policy in as many ranks as asked, run after run, each rank a fork, so that libraries load once.

``python -m tests.several_ranks MODEL_DIR`` reads runs from stdin, a line of JSON each, and answers with a line of JSON:
``statuses``, the exit status of each rank (a signal's below 0); ``seconds`` from the first rank's end to the last's.
What a rank says stands in RUN.RANK.log. Of a run: ``run``, its folder; ``ranks``; ``algorithm``; ``deepspeed``: its
file; ``url``: a vLLM server's (none: an engine in each rank); ``dies``: [rank, step, how], what becomes of a rank while
the dialogues of a step are scored; ``start``: an adapter to go on from; ``resume``; ``timeout`` in seconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

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
# this much added to the size, what is rounding in a gradient stays rounding in its step.
ADAM_EPSILON = 1e-4


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


def train_one(model_dir: Path, options: dict[str, Any]) -> None:
    """One rank of a run: the same batches of dialogues, whatever the number of ranks."""
    with together(options.get("timeout", 240.0), on_gpu=False):
        url = options.get("url")
        train(
            settings_of(options),
            model_dir=model_dir,
            run_dir=Path(options["run"]),
            server=VllmServer.connect([url]) if url else TransformersEngine(model_dir),
            templates=kind_templates(model_dir),
            cards=[a_card()],
            spec=a_spec(2),
            make_client=ByteClient,
            reward=dying(*options["dies"]) if options.get("dies") else by_turn,
            credit=CREDIT if options["algorithm"] == "ppo" else GroupRelative(4),
            start=Path(options["start"]) if options.get("start") else None,
            resume=options.get("resume", False),
        )


def forked(model_dir: Path, options: dict[str, Any], place: dict[str, str]) -> int:
    """The process id of a rank whose launcher said ``place``."""
    if child := os.fork():
        return child
    status = 1
    try:
        log = os.open(f"{options['run']}.{place.get('RANK', '0')}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(place)
        train_one(model_dir, options)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(model_dir: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks of one run, as a launcher would, and tell how they ended. None of them ends another one."""
    world, ended = options["ranks"], {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if world > 1 else {}
    places = [shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}) for rank in range(world)]
    ranks = [forked(model_dir, options, place) for place in places]
    while len(ended) < world:
        child, status = os.wait()
        ended[child] = (os.waitstatus_to_exitcode(status), time.monotonic())
    times = [moment for _, moment in ended.values()]
    return {"statuses": [ended[rank][0] for rank in ranks], "seconds": max(times) - min(times)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), json.loads(line))) + "\n")
        sys.stdout.flush()
