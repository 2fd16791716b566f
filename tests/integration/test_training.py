"""The whole loop in this process, on a tiny random policy: what is recorded, what fails, and what resuming gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from envs.errors import InputError, RunError
from envs.receipts import read_log
from envs.trajectory import ClientTurn, Message, Score, Trajectory
from tests.tiny_policy import ByteClient, a_card, a_spec, emotion_reward, kind_templates, tiny_model
from trainers.credit import GroupRelative
from trainers.curriculum import Rotation
from trainers.policy import Sampling
from trainers.train import FINAL_ADAPTER, TrainSettings, train
from trainers.trainer import Limits
from trainers.transformers_engine import TransformersEngine

SETTINGS = TrainSettings(
    steps=3,
    cards_per_step=2,
    group_size=2,
    micro_batch=2,
    checkpoint_every=1,
    sampling=Sampling(max_tokens=8, max_context=256),
)


def run(model_dir: Path, run_dir: Path, settings: TrainSettings = SETTINGS, **changes: Any) -> bytes:
    given: dict[str, Any] = {"make_client": ByteClient, "reward": emotion_reward, **changes}
    given.setdefault("server", TransformersEngine(model_dir))
    given |= {"cards": [a_card()], "spec": a_spec(2), "templates": kind_templates(model_dir)}
    final = train(settings, model_dir=model_dir, run_dir=run_dir, **given)
    return (final / "adapter_model.safetensors").read_bytes()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Killed(BaseException):
    """Stands for the process's death: no one may catch it."""


class DyingReward:
    """Ends the run at the first dialogue of a step, as a kill would: after it was played, before it was scored."""

    def __init__(self, step: int) -> None:
        self._step = step

    async def __call__(self, trajectory: Trajectory) -> Score:
        if trajectory.dialogue_id.startswith(f"{self._step:06d}-"):
            raise Killed
        return await emotion_reward(trajectory)


def test_a_run_that_was_killed_and_resumed_ends_in_the_same_adapter_bit_for_bit(model_dir, tmp_path):
    whole = run(model_dir, tmp_path / "whole")
    with pytest.raises(Killed):
        run(model_dir, tmp_path / "cut", reward=DyingReward(step=1))
    assert [line["step"] for line in lines(tmp_path / "cut" / "metrics.jsonl")] == [0]
    assert len(lines(tmp_path / "cut" / "trajectories.jsonl")) == 8  # two steps were played, the second not scored
    assert len(lines(tmp_path / "cut" / "scores.jsonl")) == 4

    torn = tmp_path / "cut" / "checkpoints" / "checkpoint-999"
    torn.mkdir()
    with (tmp_path / "cut" / "trajectories.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"dialogue_id": "0000')
    assert run(model_dir, tmp_path / "cut", resume=True) == whole
    assert not torn.exists()
    for name in ("trajectories.jsonl", "scores.jsonl"):
        ids = [line["dialogue_id"] for line in lines(tmp_path / "cut" / name)]
        assert ids == [line["dialogue_id"] for line in lines(tmp_path / "whole" / name)]
        assert len(set(ids)) == 12
    emotions = [
        [line["mean_final_emotion"] for line in lines(tmp_path / d / "metrics.jsonl")] for d in ("whole", "cut")
    ]
    assert emotions[0] == emotions[1] and len(emotions[0]) == 3


def test_training_moves_the_policy_and_says_what_happened_at_each_step(model_dir, tmp_path):
    seen: list[dict[str, Any]] = []
    first = run(model_dir, tmp_path / "a", on_step=seen.append)
    assert first != run(model_dir, tmp_path / "b", replace(SETTINGS, seed=1))
    assert seen == lines(tmp_path / "a" / "metrics.jsonl")
    assert [line["optimizer_steps"] for line in seen] == [2, 4, 6]
    for line in seen:
        assert line["dialogues"] == 4 and line["error_rate"] == 0 and line["none_rate"] == 0 and line["turns"] == 2
        assert line["max_logprob_difference"] < 1e-4
        assert set(line["seconds"]) == {"publish", "rollout", "score", "likelihoods", "update"}
    assert len({line["policy_version"] for line in seen}) == 3
    assert seen[1]["kl"] > 0 and seen[0]["grad_norm"] > 0
    assert sorted(path.name for path in (tmp_path / "a" / "adapters").iterdir()) == ["final"]


def test_the_policy_is_moved_by_our_credit_and_not_by_the_library_s_own(model_dir, tmp_path):
    one_step = replace(SETTINGS, steps=1)
    scaled = run(model_dir, tmp_path / "scaled", one_step)
    unscaled = run(model_dir, tmp_path / "unscaled", one_step, credit=GroupRelative(2, scale="none"))
    assert scaled != unscaled


def test_without_a_difference_between_totals_nothing_is_learnt(model_dir, tmp_path):
    async def equal(trajectory: Trajectory) -> Score:
        return Score(name="total", value=0.5)

    seen: list[dict[str, Any]] = []
    run(model_dir, tmp_path, replace(SETTINGS, steps=1), reward=equal, on_step=seen.append)
    assert seen[0]["groups_without_variance"] == seen[0]["groups"] == 2
    weights = load_file(tmp_path / FINAL_ADAPTER / "adapter_model.safetensors")
    assert all(not weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_a_group_meets_the_same_client(model_dir, tmp_path):
    run(model_dir, tmp_path, replace(SETTINGS, steps=1))
    trajectories = [line.trajectory for line in read_log(tmp_path / "trajectories.jsonl")]
    openings = [(trajectory.seed, trajectory.messages[0].text) for trajectory in trajectories]
    assert openings[0] == openings[1] and openings[2] == openings[3] and openings[0] != openings[2]
    assert trajectories[0].turns[0].supporter.ids != trajectories[1].turns[0].supporter.ids


class SometimesFailingClient(ByteClient):
    """Every second client breaks down on its first answer."""

    made = 0

    def __init__(self, card: Any, seed: int) -> None:
        super().__init__(card, seed)
        type(self).made += 1
        self._breaks = type(self).made % 2 == 0

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        if self._breaks:
            raise ConnectionError("the client's model went away")
        return await super().reply(history)


def test_failed_dialogues_keep_their_rows_and_train_nothing(model_dir, tmp_path):
    seen: list[dict[str, Any]] = []
    settings = replace(SETTINGS, steps=1, group_size=4, limits=Limits(error_budget=0.5))
    run(model_dir, tmp_path, settings, make_client=SometimesFailingClient, on_step=seen.append)
    assert seen[0]["dialogues"] == 8 and seen[0]["error_rate"] == 0.5
    trajectories, scores = lines(tmp_path / "trajectories.jsonl"), lines(tmp_path / "scores.jsonl")
    assert [line["stop"] == "error" for line in trajectories] == [False, True] * 4
    for trajectory, score in zip(trajectories, scores, strict=True):
        assert (score["value"] is None) == (trajectory["stop"] == "error")
        assert (score["advantage"] == 0) == (trajectory["stop"] == "error")


def test_a_run_halts_past_its_budget_of_failed_dialogues(model_dir, tmp_path):
    with pytest.raises(RunError, match=r"2 of 4 dialogues failed.*error_budget.*the client's model went away"):
        run(model_dir, tmp_path, make_client=SometimesFailingClient)
    assert len(lines(tmp_path / "trajectories.jsonl")) == 4


def test_a_run_halts_past_its_budget_of_scores_that_could_not_be_measured(model_dir, tmp_path):
    async def unsure(trajectory: Trajectory) -> Score:
        return Score(name="judge", value=None, evidence="the judge did not answer")

    with pytest.raises(RunError, match=r"4 of 4 dialogues could not be scored.*the judge did not answer"):
        run(model_dir, tmp_path, reward=unsure)


def test_a_run_fails_when_sampler_and_trainer_hold_different_policies(model_dir, tmp_path):
    other = tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match="sampler and trainer differ by"):
        run(model_dir, tmp_path / "run", server=TransformersEngine(other))


def test_a_folder_that_holds_a_run_is_not_written_over(model_dir, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match="resume it"):
        run(model_dir, tmp_path)


def test_dialogues_that_don_t_divide_are_refused_with_the_keys_to_change(model_dir, tmp_path):
    with pytest.raises(InputError, match=r"trainer\.micro_batch"):
        run(model_dir, tmp_path, replace(SETTINGS, micro_batch=3))


def test_every_card_is_played_once_before_any_is_played_again():
    rotation = Rotation(["a", "b", "c"], "appraisal-v1", seed=0, groups=2)
    played = [group for step in range(3) for group in rotation.of(step)]
    assert sorted(played[:3]) == sorted(played[3:]) == [(card, "appraisal-v1") for card in "abc"]
    assert rotation.of(1) == Rotation(["a", "b", "c"], "appraisal-v1", seed=0, groups=2).of(1)


def test_the_final_adapter_lies_where_it_is_looked_for():
    assert str(FINAL_ADAPTER) == "adapters/final"
