"""A run whose judge gives every dialogue the same level: compared pairwise from the second step on, and verified."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from envs.trajectory import Message
from rewards.dead_signal import Duel, win_shares
from rewards.judge_prompts import as_shown
from tests.integration.test_played_client import ROOT, rows
from tests.integration.test_rubric_run import SAID, config, forge
from tests.scripted_server import Request, ScriptedServer
from trainers.plan import Plan
from trainers.run import Progress, run
from trainers.verification import verify_run

pytestmark = pytest.mark.integration
PAIRS = "judgments/kardia-pairs.jsonl"
WORD = re.compile(r"[A-Za-z]")


def replies(talk: str) -> list[str]:
    return [text for who, text in SAID.findall(talk) if "upporter" in who]


def quote(said: list[str]) -> str:
    return next((text for text in said if WORD.search(text)), said[0]) or "nothing"


def dull(request: Request) -> str:
    """Level 3 for every dialogue; of two, the longer one is better."""
    shown, schema = request["messages"][1]["content"], request["response_format"]["json_schema"]["schema"]
    axis: dict[str, Any] = {"reason": "It is what was said."}
    if "level" in next(iter(schema["properties"].values()))["properties"]:
        axis |= {"evidence": quote(replies(shown)), "level": 3}
    else:
        first, second = (replies(talk) for talk in shown.split("The second talk, oldest message first:"))
        lengths = [sum(map(len, said)) for said in (first, second)]
        better = "tie" if lengths[0] == lengths[1] else "first" if lengths[0] > lengths[1] else "second"
        axis |= {"first": quote(first), "second": quote(second), "better": better}
    return json.dumps(dict.fromkeys(schema["properties"], axis))


def plan(model_dir: Path, folder: Path, url: str) -> Plan:
    dead = {"window": 1, "max_rate": 0.5, "min_groups": 1, "pairwise": ["rubric-kardia"]}
    more = ("run.name=pairs", f"dead_signals={json.dumps(dead)}", "trainer.steps=3", "trainer.checkpoint_every=1")
    return Plan.of(config(model_dir, folder, url, *more, "policy.max_new_tokens=12"))


@pytest.fixture(scope="module")
def compared(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; its judge is gone."""
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(script=dull) as server:
        patch.chdir(ROOT)
        given = plan(model_dir, tmp_path_factory.mktemp("runs"), server.url)
        assert run(given, Progress())["verified"] is True
    return given.config.run.folder


def parts(line: dict[str, Any]) -> dict[str, Any]:
    return {part["name"]: part for part in line["parts"]}


def test_from_the_second_step_on_the_reward_is_the_share_of_the_others_that_a_dialogue_beats(compared: Path) -> None:
    scores = [parts(line) | {"total": line["value"]} for line in rows(compared / "scores.jsonl")]
    assert len(scores) == 12 and len(rows(compared / PAIRS)) == 2 * 6
    assert {row["rubric-kardia"]["value"] for row in scores[:4]} == {0.5}
    assert not any(name.endswith("-absolute") for row in scores[:4] for name in row)
    lengths = [sum(len(shown(turn)) for turn in talk["turns"]) for talk in rows(compared / "trajectories.jsonl")]
    for start in (4, 8):
        group = lengths[start : start + 4]
        wins = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in group] for a in group]
        duels = [Duel(first=i, second=j, first_wins=wins[i][j]) for i in range(4) for j in range(4) if i != j]
        expected = win_shares(4, duels)
        assert len(set(expected)) > 1
        for row, share in zip(scores[start : start + 4], expected, strict=True):
            assert row["rubric-kardia"]["value"] == pytest.approx(share)
            assert row["total"] == pytest.approx((row["emotion"]["value"] + share) / 2)
            assert row["rubric-kardia-absolute"]["value"] == 0.5 and "rated 0.5" in row["rubric-kardia"]["evidence"]
            assert row["total-absolute"]["value"] == pytest.approx((row["emotion"]["value"] + 0.5) / 2)


def shown(turn: dict[str, Any]) -> str:
    return as_shown(Message(speaker="supporter", text=turn["supporter"]["text"]))


def test_the_log_tells_the_windows_rate_and_goes_on_telling_the_ratings(compared: Path) -> None:
    before, *after = [line["rewards"] for line in rows(compared / "metrics.jsonl")]
    assert before["rubric-kardia"]["dead_rate_window"] == 1.0 and "rubric-kardia-absolute" not in before
    assert len(after) == 2
    for line in after:
        assert (line["rubric-kardia"]["dead_rate"], line["rubric-kardia-absolute"]["dead_rate"]) == (0.0, 1.0)
        assert line["rubric-kardia"]["mean"] == pytest.approx(0.5)  # as that of every round robin
        assert line["total-absolute"]["mean"] is not None


def test_the_run_is_verified_from_the_recorded_answers_and_a_forged_comparison_is_found(compared: Path) -> None:
    assert verify_run(compared).problem is None

    def turned(line: dict[str, Any]) -> dict[str, Any]:
        for verdict in line["verdicts"]:
            for key in ("first_wins", "shown_first", "shown_second"):
                verdict[key] = 1 - verdict[key] if verdict[key] != 0.5 else 1.0
        return line

    def answered_anew(line: dict[str, Any]) -> dict[str, Any]:
        for opinion in line["opinions"]:
            for call in opinion["calls"]:
                call["raw"] = call["raw"].replace('"second"}', '"tie"}').replace('"first"}', '"tie"}')
        return line

    assert "scores.jsonl" in forge(compared, PAIRS, turned)
    assert "scores.jsonl" in forge(compared, PAIRS, answered_anew)
    assert "scores.jsonl" in forge(compared, PAIRS, lambda line: line | {"models": ["another"]})
    assert "scores.jsonl" in forge(compared, PAIRS, lambda line: line | {"language": "zh"})
    assert verify_run(compared).verified


def said(comparison: dict[str, Any]) -> str:
    """A comparison's pair, raw answers and verdicts: a resumed run publishes its adapters under other names, which
    stand in the trajectories, and so in their digests and the prompts' fences."""
    raw = [call["raw"] for opinion in comparison["opinions"] for call in opinion["calls"]]
    return json.dumps([comparison["dialogue_ids"], raw, comparison["verdicts"]])


class Killed(BaseException):
    """Stands for the process's death: no one may catch it."""


def test_a_run_that_was_killed_after_the_switch_and_resumed_equals_the_whole_one(
    compared: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(line: dict[str, Any]) -> None:
        if line["step"] == 1:
            raise Killed

    monkeypatch.chdir(ROOT)
    with ScriptedServer(script=dull) as server:
        given = plan(model_dir, tmp_path, server.url)
        with pytest.raises(Killed):
            run(given, Progress(step=die))
        cut = given.config.run.folder
        assert len(rows(cut / PAIRS)) == 6 and not (cut / "manifest.json").exists()
        assert run(given, Progress(), resume=True)["verified"] is True
    for name in ("scores.jsonl", "adapters/final/adapter_model.safetensors"):
        assert (cut / name).read_bytes() == (compared / name).read_bytes()
    both = [sorted(map(said, rows(folder / PAIRS))) for folder in (cut, compared)]
    assert both[0] == both[1] and len(set(both[0])) == 12
    told = [[line["rewards"] for line in rows(folder / "metrics.jsonl")] for folder in (cut, compared)]
    assert told[0] == told[1]
