"""A whole run with a warm start on a tiny policy: evaluated three times, killed at two places, resumed, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trainers.warm_start
from envs.errors import InputError
from tests.integration.test_training import Killed
from tests.tiny_policy import tiny_model
from trainers.config import RunConfig
from trainers.plan import Plan
from trainers.run import Progress, run
from trainers.verification import verify_run

WEIGHTS = "adapter_model.safetensors"
REPLY = "I hear how much that weighs on you."


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("warm")
    talk = [{"role": "user", "content": "It rained."}, {"role": "assistant", "content": REPLY}]
    rows = [{"messages": [{"role": "user", "content": f"It rained {n} days."}, talk[1]]} for n in range(5)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = tiny_model(folder / "model")
    return RunConfig.model_validate(
        {
            "run": {"name": "whole", "dir": str(folder)},
            "policy": {"model": str(model), "context_tokens": 1000, "max_new_tokens": 40},
            "cards": {"paths": ["configs/cards/en"]},
            "dialogue": {"max_turns": 1},
            "warm_start": {"data": [str(folder / "talks.jsonl")], "epochs": 2, "batch": 4, "learning_rate": 1e-2},
            "trainer": {"steps": 2, "cards_per_step": 2, "dialogues_per_card": 2, "micro_batch": 2},
            "engine": {"kind": "transformers"},
            "evaluation": {"seeds_per_card": 1, "bootstrap_resamples": 100, "split": "dev"},
        }
    )


def named(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def adapters(folder: Path) -> list[bytes]:
    return [(folder / "adapters" / name / WEIGHTS).read_bytes() for name in ("warm_start", "final")]


@pytest.fixture(scope="module")
def whole(config: RunConfig) -> dict[str, Any]:
    return run(Plan.of(config), Progress())


def test_base_warm_start_and_tuned_are_evaluated_compared_and_verified(
    config: RunConfig, whole: dict[str, Any]
) -> None:
    folder = config.run.folder
    assert whole["verified"] and verify_run(folder).verified
    assert {path.name for path in (folder / "evaluation").iterdir()} == {"base", "warm_start", "tuned"}
    assert set(whole["shares"]) == {"warm_start", "rl"}
    versions = [
        json.loads((folder / "evaluation" / side / "evaluation.json").read_text("utf-8"))["policy_versions"]
        for side in ("base", "warm_start", "tuned")
    ]
    assert versions == [["base"], ["whole-warm_start"], ["whole-final"]]
    told = json.loads((folder / "warm_start.json").read_text("utf-8"))
    assert (told["data"], told["imitated"], told["without_card"]) == (["talks.jsonl"], 5, 5)
    assert told["trained_tokens"] == 5 * (len(REPLY) + 1)
    assert len((folder / "warm_start.jsonl").read_text("utf-8").splitlines()) == 2 * 2


@pytest.mark.parametrize("place", ["in the warm start", "in RL"])
def test_a_run_that_was_killed_ends_in_the_same_adapters(
    config: RunConfig, whole: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = named(config, place.replace(" ", "-"))

    def die(*_: Any) -> None:
        raise Killed

    if place == "in RL":
        with pytest.raises(Killed):
            run(Plan.of(cut), Progress(step=die))
        kept = (cut.run.folder / "adapters" / "warm_start" / WEIGHTS).stat().st_mtime_ns
    else:
        with monkeypatch.context() as patch:
            patch.setattr(trainers.warm_start, "write_adapter", die)
            with pytest.raises(Killed):
                run(Plan.of(cut), Progress())
        assert not (cut.run.folder / "adapters" / "warm_start").exists()
        kept = None
    summary = run(Plan.of(cut), Progress(), resume=True)
    assert summary["verified"] and adapters(cut.run.folder) == adapters(config.run.folder)
    if kept:
        assert (cut.run.folder / "adapters" / "warm_start" / WEIGHTS).stat().st_mtime_ns == kept


def test_other_dialogues_than_at_the_start_are_refused_on_resuming(config: RunConfig, whole: dict[str, Any]) -> None:
    data = Path(config.warm_start.data[0])
    before = data.read_text(encoding="utf-8")
    try:
        data.write_text(before.replace("3 days", "4 days"), encoding="utf-8")
        with pytest.raises(InputError, match=r"warm_start\.json:\d+: is not what this run started with"):
            run(Plan.of(config), Progress(), resume=True)
    finally:
        data.write_text(before, encoding="utf-8")
