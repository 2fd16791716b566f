"""GRPO on two real vLLM servers, one of which is killed in the middle of a step: nothing is lost or comes twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.trajectory import ClientTurn, Message
from tests.tiny_policy import ByteClient, a_card, a_spec, emotion_reward, kind_templates
from trainers.policy import Sampling
from trainers.train import TrainSettings, train
from trainers.vllm_process import VllmSettings
from trainers.vllm_server import VllmServer

pytest.importorskip("vllm")
pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS, ROWS, TURNS = 3, 8, 4
SETTINGS = TrainSettings(
    steps=STEPS,
    cards_per_step=2,
    group_size=4,
    micro_batch=4,
    checkpoint_every=10,
    sampling=Sampling(max_tokens=16, max_context=256),
)


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    logs = tmp_path_factory.mktemp("logs")
    one = VllmSettings(model_dir, logs / "vllm.log", max_model_len=256, threads=1)
    with VllmServer.start(one, replace(one, log_file=logs / "vllm_1.log")) as started:
        yield started


TOLD: list[Callable[[], None]] = []


class Listening(ByteClient):
    """A client that tells those of TOLD whenever it has heard a reply."""

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        for tell in TOLD:
            tell()
        return await super().reply(history)


class Killer:
    """Kills a server with requests in flight, in the middle of the second step."""

    def __init__(self, server: VllmServer) -> None:
        self.server, self.steps, self.replies = server, 0, 0
        self.killed: str | None = None

    def step(self, line: dict[str, Any]) -> None:
        self.steps += 1

    def heard(self) -> None:
        self.replies += self.steps == 1
        if self.replies < ROWS * TURNS // 2 or self.killed:
            return
        busy = max(self.server._replicas.members, key=lambda member: member.in_flight)
        if busy.process and busy.in_flight > 1:
            os.killpg(busy.process.process.pid, signal.SIGKILL)
            self.killed = busy.url


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def replies(run_dir: Path) -> list[list[int]]:
    return [turn["supporter"]["ids"] for line in lines(run_dir / "trajectories.jsonl") for turn in line["turns"]]


def run(server: VllmServer, model_dir: Path, run_dir: Path, killer: Killer | None = None) -> None:
    TOLD[:] = [killer.heard] if killer else []
    train(
        SETTINGS,
        model_dir=model_dir,
        run_dir=run_dir,
        server=server,
        templates=kind_templates(model_dir),
        cards=[a_card()],
        spec=a_spec(TURNS),
        make_client=Listening,
        reward=emotion_reward,
        on_step=killer.step if killer else None,
    )


def test_a_server_that_is_killed_in_the_middle_of_a_step_costs_nothing(server, model_dir, tmp_path):
    run(server, model_dir, tmp_path / "whole")
    killer = Killer(server)
    run(server, model_dir, tmp_path / "killed", killer)
    whole, killed = (lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))

    assert killer.killed in server.urls
    [alive] = set(server.urls) - {killer.killed}
    assert [line["engine"]["left_out"].keys() for line in killed] == [set(), *[{killer.killed}] * (STEPS - 1)]
    assert killed[1]["engine"]["asked_elsewhere"] >= 2
    assert [line["engine"]["requests"][killer.killed] > 0 for line in killed] == [True, True, *[False] * (STEPS - 2)]
    assert [line["engine"]["requests"][alive] for line in killed[2:]] == [ROWS * TURNS] * (STEPS - 2)
    assert all(line["engine"]["left_out"] == {} and line["engine"]["asked_elsewhere"] == 0 for line in whole)

    for line in killed:
        assert line["dialogues"] == ROWS and line["error_rate"] == line["none_rate"] == 0
        assert 0 < line["max_logprob_difference"] < 1e-4
    for name in ("trajectories.jsonl", "scores.jsonl"):
        played = [line["dialogue_id"] for line in lines(tmp_path / "killed" / name)]
        assert len(set(played)) == len(played) == STEPS * ROWS
        assert played == [line["dialogue_id"] for line in lines(tmp_path / "whole" / name)]
    # Batches differ, and with them last digits; so once in a while a token may, and all that follows it.
    pairs = list(zip(replies(tmp_path / "whole"), replies(tmp_path / "killed"), strict=True))
    assert len(pairs) == STEPS * ROWS * TURNS and sum(one == other for one, other in pairs) >= 0.8 * len(pairs)
