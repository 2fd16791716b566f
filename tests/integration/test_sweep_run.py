"""Two arms of a sweep, trained in processes of their own on a tiny random policy, and the report of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scripts import attune
from tests.integration.test_played_client import few_cards
from tests.tiny_policy import tiny_model
from trainers.verification import verify_run

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_two_cells_are_trained_verified_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {
        "policy": {"model": str(tiny_model(tmp_path / "model")), "max_new_tokens": 6, "context_tokens": 1024},
        "engine": {"kind": "transformers"},
        "cards": {"paths": yaml.safe_load(few_cards())},
        "dialogue": {"max_turns": 1},
        "trainer": {"steps": 3, "cards_per_step": 1, "dialogues_per_card": 2, "minibatches": 1, "micro_batch": 2},
        "evaluation": {"seeds_per_card": 2, "bootstrap_resamples": 100},
    }
    arms = [{"name": "whole"}, {"name": "short", "trainer.steps": 1}]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    grid = {"base": str(tmp_path / "base.yaml"), "seeds": [3], "arms": arms}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")
    out = tmp_path / "out"
    assert attune.main(["sweep", "-c", str(tmp_path / "grid.yaml"), "--out", str(out), "--jobs", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert [arm["training_dialogues"] for arm in printed["arms"]] == [6, 2]
    assert printed["pairs"][0]["dialogues_share"] == pytest.approx(1 / 3, abs=1e-6)
    for name in ("whole", "short"):
        folder = out / f"{name}-seed3"
        assert verify_run(folder).verified
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        (arm,) = (arm for arm in printed["arms"] if arm["name"] == name)
        assert arm["tuned"]["mean"] == pytest.approx(summary["tuned"]["mean_final_emotion"])
        assert arm["gain"]["mean"] == pytest.approx(summary["difference"]["mean"])
