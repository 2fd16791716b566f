"""``attune rescore``: a saved run under other rewards, from its record alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_run import make_run

from envs.errors import InputError
from envs.trajectory import Score, Stop, Trajectory
from scripts.attune import main
from tests.unit.dialogues import card, trajectory
from trainers import rescore as module
from trainers.config import RewardTerm
from trainers.rescore import recorded_totals, rescore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small")


class Turns:
    """A reward for short talks."""

    name = "turns"

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(name=self.name, value=1 / len(trajectory.turns), evidence=f"{len(trajectory.turns)} turns")


def test_the_runs_own_rewards_give_back_exactly_what_it_recorded(run: Path) -> None:
    before = recorded_totals(run)
    again = {one.dialogue_id: one.total for one in rescore(run, [RewardTerm(name="emotion")])}
    assert before and {key: again[key] for key in before} == before


def test_other_rewards_are_weighed_as_in_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.REWARDS, "turns", Turns)
    for one in rescore(run, [RewardTerm(name="emotion", weight=3), RewardTerm(name="turns")]):
        emotion, turns = one.scores["emotion"], one.scores["turns"]
        assert emotion is not None and turns is not None
        assert one.total == pytest.approx((3 * emotion + turns) / 4)
        assert one.evidence["turns"].endswith("turns")


def test_every_log_of_the_run_is_scored(run: Path) -> None:
    files = {one.file for one in rescore(run, [RewardTerm(name="emotion")])}
    assert files == {
        "trajectories.jsonl",
        "evaluation/base/trajectories.jsonl",
        "evaluation/tuned/trajectories.jsonl",
    }


def test_a_failed_dialogue_has_no_total(tmp_path: Path) -> None:
    from envs.receipts import TrajectoryLog

    TrajectoryLog(tmp_path / "t.jsonl").append(trajectory(card("en-ann"), 0, [], stop=Stop.ERROR))
    (one,) = rescore(tmp_path / "t.jsonl", [RewardTerm(name="emotion")])
    assert one.total is None and one.scores == {"emotion": None}


def test_a_changed_run_and_an_unknown_reward_are_refused(run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(run, changed)
    text = (changed / "trajectories.jsonl").read_text(encoding="utf-8")
    (changed / "trajectories.jsonl").write_text(text.replace('"emotion":4', '"emotion":5', 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"trajectories\.jsonl: .*; a changed run is not scored again"):
        rescore(changed, [RewardTerm(name="emotion")])
    with pytest.raises(InputError, match="no reward named 'kindness'; known: emotion"):
        rescore(run, [RewardTerm(name="kindness")])


def test_the_command_writes_a_line_a_dialogue_and_says_how_many_are_as_recorded(
    run: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "again.jsonl"
    assert main(["rescore", str(run), "--reward", "emotion=2", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recorded"] == told["equal"] == len(recorded_totals(run))
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines == told["dialogues"]
    assert main(["rescore", str(run), "--reward", "emotion", "--out", str(out)]) == 2
    assert main(["rescore", str(run), "--reward", "emotion=much"]) == 2
    assert main(["rescore", str(run), "--reward", "emotion"]) == 0
    assert "training dialogues have the total that the run recorded" in capsys.readouterr().out
