"""Canaries: fixed transcripts that load, score like any dialogue, and are the same at every step."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from envs.errors import InputError
from envs.trajectory import Score, Trajectory
from rewards.canaries import Canary, load_canaries, score_canaries
from rewards.emotion import EmotionReward
from trainers.language import perceived
from trainers.watch import Watch
from trainers.watch_rules import load_rules


class Judge:
    """Marks the words of the last reply; ``mark`` may be changed, as a served model may."""

    name = "judge"

    def __init__(self) -> None:
        self.mark = 0.5

    async def score(self, trajectory: Trajectory) -> Score:
        if trajectory.dialogue_id == "canary/turns-away":
            raise ConnectionError("the judge went away")
        return Score(name=self.name, value=self.mark)


def test_the_shipped_canaries_load_in_both_languages_and_make_whole_dialogues() -> None:
    canaries = load_canaries(["en", "zh"])
    assert {canary.language for canary in canaries} == {"en", "zh"} and len(canaries) >= 8
    for canary in canaries:
        trajectory = canary.trajectory
        assert trajectory.emotions == [canary.start, *(turn.emotion for turn in canary.turns)]
        assert len(trajectory.messages) == 1 + 2 * len(canary.turns) and canary.shows
        assert Trajectory.model_validate_json(trajectory.model_dump_json()) == trajectory == canary.trajectory


def test_a_canary_is_read_in_its_own_language() -> None:
    (first, *_), (chinese, *_) = load_canaries(["en"]), load_canaries(["zh"])
    assert "question" in perceived(first.trajectory, "rules-v1")[0]["acts"]
    assert perceived(chinese.trajectory, "rules-v1")[0]["gibberish"] == 0


def test_canaries_are_scored_by_every_reward_and_one_that_can_t_be_is_none() -> None:
    found = asyncio.run(score_canaries(load_canaries(["en"]), [EmotionReward(), Judge()]))
    assert found["emotion"]["listens"] == 0.52 and found["emotion"]["turns-away"] == 0.2
    assert found["judge"]["listens"] == 0.5 and found["judge"]["turns-away"] is None


def test_a_judge_that_changes_under_way_moves_every_canary_that_it_marks() -> None:
    canaries, judge, watch = load_canaries(["zh"]), Judge(), Watch(load_rules())
    rewards = [EmotionReward(), judge]
    for step in range(3):
        assert watch.canaries(step, asyncio.run(score_canaries(canaries, rewards))) == []
    judge.mark = 0.75
    alarms = watch.canaries(3, asyncio.run(score_canaries(canaries, rewards)))
    assert [alarm.moved[0].what for alarm in alarms] == [f"judge of canary {canary.id}" for canary in canaries]


def line(**changes: Any) -> str:
    turn = {"supporter": "Go on.", "client": "Yes.", "emotion": 45}
    data = {"id": "x", "language": "en", "shows": "a test", "opening": "Hello.", "start": 40, "turns": [turn]}
    return json.dumps(data | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"en\.jsonl:1: is not JSON"),
        (line(start=101), r"en\.jsonl:1: start: "),
        (line(turns=[]), r"en\.jsonl:1: turns: "),
        (line(mood="x"), r"en\.jsonl:1: mood: is not a known key"),
        (line(language="zh"), r"en\.jsonl:1: 'x' needs language 'en'"),
        (line() + "\n" + line(), r"en\.jsonl:2: 'x' needs .* an id of its own"),
        (None, "can't be read"),
    ],
)
def test_a_bad_file_of_canaries_is_refused_with_its_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "en.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_canaries(["en"], tmp_path)


def test_a_canary_s_feeling_may_fall() -> None:
    canary = Canary.model_validate_json(line(start=50))
    assert [turn.client.change for turn in canary.trajectory.turns] == [-5]
