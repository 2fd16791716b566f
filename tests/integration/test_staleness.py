"""Dialogues that are sampled while training goes on: whose weights, the same again, after a kill too, and noticed
when wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import RunError
from tests.integration.test_training import SETTINGS, DyingReward, Killed, lines, run
from trainers.transformers_engine import TransformersEngine

STALE = replace(SETTINGS, steps=5, max_staleness=1, checkpoint_every=2)


def versions(run_dir: Path) -> list[str]:
    """The last part of the name of the version that sampled each step."""
    return [line["policy_version"].partition("-")[2] for line in lines(run_dir / "metrics.jsonl")]


def test_each_step_is_sampled_by_the_weights_of_the_step_before(model_dir, tmp_path):
    run(model_dir, tmp_path / "run", STALE)
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert versions(tmp_path / "run") == ["v000000", "v000000", "v000002", "v000004", "v000006"]
    assert [line["staleness"] for line in metrics] == [0, 1, 1, 1, 1]
    said_by = {
        (line["dialogue_id"][:6], turn["supporter"]["policy_version"])
        for line in lines(tmp_path / "run" / "trajectories.jsonl")
        for turn in line["turns"]
    }
    assert said_by == {(f"{line['step']:06d}", line["policy_version"]) for line in metrics}
    assert all(line["max_logprob_difference"] < 1e-4 for line in metrics)
    ratios = [line["importance_ratio"] for line in metrics]
    assert ratios[0]["min"] == pytest.approx(1, abs=1e-4) and ratios[0]["max"] == pytest.approx(1, abs=1e-4)
    assert all(ratio["min"] < 1 - 1e-4 < 1 + 1e-4 < ratio["max"] for ratio in ratios[1:])
    assert all(0 <= ratio["capped"] <= 1 for ratio in ratios)


def test_the_first_two_steps_are_those_of_an_on_policy_run_and_the_third_is_not(model_dir, tmp_path):
    run(model_dir, tmp_path / "stale", STALE)
    run(model_dir, tmp_path / "fresh", replace(STALE, max_staleness=0))
    said = [
        {line["dialogue_id"]: [turn["supporter"]["ids"] for turn in line["turns"]] for line in lines(path)}
        for path in (tmp_path / name / "trajectories.jsonl" for name in ("stale", "fresh"))
    ]
    assert said[0].keys() == said[1].keys()  # nobody else is talked with
    same = Counter(name[:6] for name in said[0] if said[0][name] == said[1][name])
    assert same["000000"] == 4 and same["000002"] < 4


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_stale_run_that_was_killed_and_resumed_ends_in_the_same_adapter_bit_for_bit(model_dir, tmp_path, step):
    whole = run(model_dir, tmp_path / "whole", STALE)
    assert run(model_dir, tmp_path / "again", STALE) == whole
    with pytest.raises(Killed):
        run(model_dir, tmp_path / "cut", STALE, reward=DyingReward(step))
    assert run(model_dir, tmp_path / "cut", STALE, resume=True) == whole
    for name in ("trajectories.jsonl", "scores.jsonl"):
        ids = [[line["dialogue_id"] for line in lines(tmp_path / run_ / name)] for run_ in ("whole", "cut")]
        assert ids[0] == ids[1] and len(set(ids[0])) == 20


def test_a_resumed_run_samples_the_steps_that_were_begun_with_the_version_that_they_had(model_dir, tmp_path):
    settings = replace(STALE, max_staleness=2, steps=6, checkpoint_every=3)
    whole = run(model_dir, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        run(model_dir, tmp_path / "cut", settings, reward=DyingReward(4))
    kept = tmp_path / "cut" / "checkpoints" / "checkpoint-6" / "begun"
    assert {path.parent.name: path.name for path in kept.glob("*/*")} == {"000003": "v000002", "000004": "v000004"}
    assert run(model_dir, tmp_path / "cut", settings, resume=True) == whole
    assert [name[:7] for name in versions(tmp_path / "cut")] == versions(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "cut" / "adapters").iterdir()) == ["final"]


class Forgetful(TransformersEngine):
    """Answers with the first adapter for ever."""

    first: str | None = None

    def publish(self, adapter_dir: Path) -> str:
        name = super().publish(adapter_dir)
        self.first = self.first or name
        return name

    def retire(self, name: str) -> None:
        if name != self.first:
            super().retire(name)

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        return await super().generate(*args, **{**kwargs, "adapter": self.first})


def test_a_stale_run_fails_too_when_the_sampler_does_not_hold_the_newest_weights(model_dir, tmp_path):
    with pytest.raises(RunError, match=r"step 1: sampler and trainer differ by .*v000002"):
        run(model_dir, tmp_path / "run", STALE, server=Forgetful(model_dir))
