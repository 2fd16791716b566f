"""PPO through the whole loop in this process, on a tiny random policy: what it records, resumes and leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_training import SETTINGS, DyingReward, Killed, lines, run
from trainers.credit import ValueBased
from trainers.train import FINAL_ADAPTER
from trainers.value_head import FILE

PPO = replace(SETTINGS, beta=0.0, loss_type="dapo")
CREDIT = ValueBased("turn", lam=0.9, reference_kl=0.01)


async def by_turn(trajectory: Any) -> Any:
    from tests.tiny_policy import emotion_reward

    score = await emotion_reward(trajectory)
    return score.model_copy(update={"per_turn": tuple(turn.client.change / 100 for turn in trajectory.turns)})


def state(run_dir: Path) -> dict[str, torch.Tensor]:
    """Adapter, value head and optimizer of the last checkpoint."""
    folder = max((run_dir / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = {f"{i}.{key}": value for i, part in optimizer["state"].items() for key, value in part.items()}
    return load_file(folder / "adapter_model.safetensors") | load_file(folder / FILE) | moments


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_run_that_was_killed_between_steps_and_resumed_is_the_same_bit_for_bit(model_dir, tmp_path, step):
    whole = run(model_dir, tmp_path / "whole", PPO, credit=CREDIT, reward=by_turn)
    dying = DyingReward(step)

    async def until_killed(trajectory: Any) -> Any:
        await dying(trajectory)
        return await by_turn(trajectory)

    with pytest.raises(Killed):
        run(model_dir, tmp_path / "cut", PPO, credit=CREDIT, reward=until_killed)
    assert run(model_dir, tmp_path / "cut", PPO, credit=CREDIT, reward=by_turn, resume=True) == whole
    first, second = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert first.keys() == second.keys() and any("exp_avg" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_value_head_learns_is_logged_and_is_left_out_of_the_adapter(model_dir, tmp_path):
    seen: list[dict[str, Any]] = []
    run(model_dir, tmp_path, PPO, credit=CREDIT, reward=by_turn, on_step=seen.append)
    assert seen[0]["kl"] == 0 and seen[-1]["kl"] > 0
    assert all(line["value_loss"] > 0 and line["explained_variance"] <= 1 for line in seen)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-6"
    assert load_file(checkpoint / FILE)["weight"].abs().max() > 0
    for folder in (tmp_path / FINAL_ADAPTER, checkpoint):
        names = set(load_file(folder / "adapter_model.safetensors"))
        assert names and all("lora_" in name for name in names)


def test_the_record_holds_what_each_turn_was_rewarded_with(model_dir, tmp_path):
    run(model_dir, tmp_path, replace(PPO, steps=1), credit=CREDIT, reward=by_turn)
    for score, talk in zip(lines(tmp_path / "scores.jsonl"), lines(tmp_path / "trajectories.jsonl"), strict=True):
        changes = [turn["client"]["change"] / 100 for turn in talk["turns"]]
        assert score["rewards"] == pytest.approx(changes)
        assert sum(changes) == pytest.approx(score["value"] - talk["opening"]["emotion"] / 100)


def test_a_dialogue_alone_with_its_card_can_be_learnt_from(model_dir, tmp_path):
    alone = replace(PPO, steps=1, cards_per_step=4, group_size=1)
    run(model_dir, tmp_path, alone, credit=CREDIT, reward=by_turn)
    weights = load_file(tmp_path / FINAL_ADAPTER / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)


def test_a_checkpoint_without_its_value_head_is_refused(model_dir, tmp_path):
    with pytest.raises(Killed):
        run(model_dir, tmp_path, PPO, credit=CREDIT, reward=DyingReward(step=1))
    (tmp_path / "checkpoints" / "checkpoint-2" / FILE).unlink()
    with pytest.raises(Exception, match=r"value_head\.safetensors: the value head can't be read"):
        run(model_dir, tmp_path, PPO, credit=CREDIT, reward=by_turn, resume=True)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0
