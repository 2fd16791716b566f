"""An adaptive curriculum in a training run: the same choices after a kill, several clients, and a record that holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.cards import CARDS_DIR, load_card
from envs.client_spec import ClientSpec, load_spec
from envs.clients import make_client
from envs.errors import RunError
from envs.trajectory import Score, Trajectory
from tests.tiny_policy import emotion_reward, kind_templates
from trainers.config import RunConfig
from trainers.config_file import dump_config
from trainers.curriculum import CURRICULUM, Curriculum
from trainers.policy import Sampling
from trainers.rollouts import MakeClient, Player
from trainers.run_folder import RunFolder
from trainers.train import TrainSettings, train
from trainers.transformers_engine import TransformersEngine
from trainers.verification import verify_run

SETTINGS = TrainSettings(
    steps=5,
    cards_per_step=2,
    group_size=2,
    micro_batch=2,
    checkpoint_every=2,
    sampling=Sampling(max_tokens=8, max_context=512),
)
MILD = load_spec("appraisal-v1").model_copy(update={"max_turns": 2})
HARSH = MILD.model_copy(update={"name": "appraisal-harsh-v1", "failure_below": 34.0})
CARDS = [load_card(CARDS_DIR / "en" / f"{name}.yaml") for name in ("bus-depot-letter", "chest-for-the-wedding")]
CONFIG = RunConfig.model_validate(
    {
        "trainer": {"steps": 5, "cards_per_step": 2, "dialogues_per_card": 2, "micro_batch": 2},
        "engine": {"kind": "transformers"},
        "curriculum": {"kind": "adaptive", "clients": ["harsh.yaml"], "prefer": "hard", "floor": 0.1, "prior": 1},
    }
)


def maker(spec: ClientSpec) -> MakeClient:
    return lambda card, seed: make_client(card, spec, seed)


def run(
    model_dir: Path,
    run_dir: Path,
    ahead: int = 0,
    *,
    resume: bool = False,
    reward: Callable[..., Any] = emotion_reward,
) -> None:
    """Train in a recorded folder, as a run does."""
    record = run_dir / "trajectories.jsonl"
    trainer = CONFIG.trainer.model_copy(update={"max_staleness": ahead})
    with RunFolder.create(run_dir, resume=resume) as folder:
        folder.record(dump_config(CONFIG.model_copy(update={"trainer": trainer})), CARDS, [MILD, HARSH], {"run": 0})
        train(
            replace(SETTINGS, max_staleness=ahead),
            model_dir=model_dir,
            run_dir=run_dir,
            server=TransformersEngine(model_dir),
            templates=kind_templates(model_dir),
            cards=CARDS,
            spec=MILD,
            make_client=maker(MILD),
            further=[Player(HARSH, maker(HARSH))],
            schedule=Curriculum(CONFIG.curriculum, CARDS, [MILD, HARSH], seed=0, groups=2, ahead=ahead, record=record),
            reward=reward,
            resume=resume,
        )
        folder.finish()


def played(run_dir: Path) -> list[tuple[str, str]]:
    """(id, spec) of each dialogue, in the order of the record."""
    lines = (run_dir / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["dialogue_id"], line["spec"]) for line in map(json.loads, lines)]


def curricula(run_dir: Path) -> list[Any]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[CURRICULUM] for line in lines]


class Killed(BaseException):
    """Stands for the process's death: no one may catch it."""


async def dies_at_step_3(trajectory: Trajectory) -> Score:
    if trajectory.dialogue_id.startswith("000003-"):
        raise Killed
    return await emotion_reward(trajectory)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_run_that_was_killed_and_resumed_plays_the_same_and_both_are_verified(model_dir, tmp_path, ahead):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(model_dir, whole, ahead)
    with pytest.raises(Killed):
        run(model_dir, cut, ahead, reward=dies_at_step_3)
    assert len(curricula(cut)) == 3  # of which the last checkpoint holds two
    run(model_dir, cut, ahead, resume=True)
    assert played(cut) == played(whole) and {spec for _, spec in played(whole)} == {MILD.name, HARSH.name}
    assert curricula(cut) == curricula(whole) and len(curricula(whole)) == 5
    rates = [{one["failure_rate"] for one in line.values()} for line in curricula(whole)]
    assert all(told == {0.5} for told in rates[: ahead + 1]) and len(rates[-1]) > 1  # what was observed has moved them
    for folder in (whole, cut):
        found = verify_run(folder)
        assert found.verified, found.problem
        assert found.checks["metrics"].checked == 5


def test_a_record_whose_dialogues_were_not_chosen_is_not_gone_on_from(model_dir, tmp_path):
    with pytest.raises(Killed):
        run(model_dir, tmp_path, reward=dies_at_step_3)
    schedule = Curriculum(
        CONFIG.curriculum, CARDS, [MILD, HARSH], seed=1, groups=2, record=tmp_path / "trajectories.jsonl"
    )
    with pytest.raises(RunError, match=r"step \d: dialogue \d is with .*, the curriculum chose"):
        schedule.of(2)
    shorter = Curriculum(
        CONFIG.curriculum, CARDS, [MILD, HARSH], seed=0, groups=2, record=tmp_path / "trajectories.jsonl"
    )
    with pytest.raises(RunError, match="tells of 4 steps"):
        shorter.of(7)
