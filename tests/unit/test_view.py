"""``attune view``: what a reader of recorded dialogues is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.receipts import TrajectoryLog
from envs.trajectory import Trajectory
from scripts.attune import main
from tests.unit.dialogues import card, trajectory

ANN = card("en-ann")
THOUGHT = {"said": "It asks.", "fit": "A little.", "inner": "Hm.", "feeling": "Wary.", "change": -3}
WHY = {"why": [{"push": 0.25, "reason": "reflection"}]}


def with_appraisal(appraisal: dict) -> Trajectory:
    found = trajectory(ANN, 0, [50])
    (turn,) = found.turns
    client = turn.client.model_copy(update={"appraisal": appraisal})
    return found.model_copy(update={"turns": (turn.model_copy(update={"client": client}),)})


def member(spec: str, emotion: float, appraisal: dict) -> dict:
    return {"spec": spec, "emotion": emotion, "change": emotion - 40, "appraisal": appraisal}


@pytest.mark.parametrize(
    ("appraisal", "lines"),
    [
        (WHY, ["+0.25  reflection"]),
        ({"appraised": THOUGHT, "calls": []}, ["fit: A little.", "feeling: Wary.", "change: -3"]),
        (
            {
                "mean": 45.0,
                "deviation": 5.0,
                "members": [
                    member("attune-v1", 50.0, {"appraised": THOUGHT}),
                    member("appraisal-v1", 40.0, WHY),
                ],
            },
            ["mean 45.0, deviation 5.0", "attune-v1: 50 (+10)", "appraisal-v1: 40 (+0)", "change: -3", "reflection"],
        ),
    ],
    ids=["embedded", "played", "ensemble"],
)
def test_the_reasons_of_every_kind_of_client_are_shown_on_demand(tmp_path: Path, capsys, appraisal, lines) -> None:
    TrajectoryLog(tmp_path / "trajectories.jsonl").append(with_appraisal(appraisal))
    assert main(["view", str(tmp_path), "--why"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in lines if line not in shown] == []
    assert main(["view", str(tmp_path)]) == 0
    assert [line for line in lines if line in capsys.readouterr().out] == []
