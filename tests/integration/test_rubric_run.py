"""A run on emotion, a judged rubric and gates, with the watch: trained, logged, verified without the judge."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from envs.errors import RunError
from rewards.rubric import rubric_file
from tests.integration.test_played_client import ROOT, few_cards, rows
from tests.scripted_server import Request, ScriptedServer
from trainers.config_file import load_config
from trainers.manifest import write_manifest
from trainers.plan import Plan
from trainers.run import Progress, run
from trainers.verification import verify_run

pytestmark = pytest.mark.integration
SAID = re.compile(r'<said-\w+ by="([^"]+)">\n(.*?)\n</said-', re.DOTALL)


def verdict(request: Request) -> str:
    """Quotes the last reply of the supporter, and rates by its letters, so that dialogues differ."""
    shown = SAID.findall(request["messages"][1]["content"])
    replies = [text for who, text in shown if "upporter" in who]
    quote, properties = replies[-1], request["response_format"]["json_schema"]["schema"]["properties"]
    level = 1 + sum(map(ord, "".join(replies))) % 5
    axis = {"evidence": quote[:60] or "nothing", "reason": "It is what was said.", "level": level}
    return json.dumps(dict.fromkeys(properties, axis))


def config(model_dir: Path, folder: Path, url: str, *more: str) -> Any:
    rubric = folder / "kardia.yaml"
    shutil.copy(rubric_file("kardia"), rubric)
    judge = {"rubric": str(rubric), "uncertified": True, "models": [{"endpoint": {"base_url": url, "model": "judge"}}]}
    rewards = [{"name": "emotion", "weight": 1}, {"name": "rubric-kardia", "weight": 1}]
    return load_config(
        None,
        [
            f"run.dir={folder}",
            "run.name=judged",
            f"policy.model={model_dir}",
            "policy.max_new_tokens=6",
            "policy.context_tokens=4000",
            "engine.kind=transformers",
            f"cards.paths={few_cards()}",
            "dialogue.max_turns=2",
            f"rewards={json.dumps(rewards)}",
            f"judges={json.dumps([judge])}",
            "gates.read_only=[crisis, medical]",  # a policy of random bytes speaks no language, which no gate lets pass
            "watch.rules=watch-v1",
            "watch.split=train",
            "watch.cards=1",
            "trainer.steps=2",
            "trainer.cards_per_step=1",
            "trainer.dialogues_per_card=4",
            "trainer.micro_batch=4",
            "trainer.minibatches=1",
            "trainer.combine=decoupled",
            "evaluation.bootstrap_resamples=100",
            "evaluation.seeds_per_card=1",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def judged(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; its judge is gone."""
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(script=verdict) as server:
        patch.chdir(ROOT)
        given = config(model_dir, tmp_path_factory.mktemp("runs"), server.url)
        assert run(Plan.of(given), Progress())["verified"] is True
    Path(given.judges[0].rubric).unlink()  # the run keeps its own
    return given.run.folder


def test_every_dialogue_has_a_judgment_and_each_score_stands_beside_the_total(judged: Path) -> None:
    scores = rows(judged / "scores.jsonl")
    assert len(rows(judged / "judgments/kardia.jsonl")) == len(scores) == 8
    assert len({line["value"] for line in scores} - {None}) > 1
    for line in scores:
        emotion, rubric, gates = line["parts"]
        assert [part["name"] for part in line["parts"]] == ["emotion", "rubric-kardia", "gates"]
        if line["value"] is not None:
            assert line["value"] == pytest.approx((emotion["value"] + rubric["value"]) / 2)
        assert gates["evidence"]


def test_the_log_shows_each_scores_none_rate_and_dead_signal_rate_and_what_the_watch_measured(judged: Path) -> None:
    for line in rows(judged / "metrics.jsonl"):
        assert set(line["rewards"]) == {"emotion", "rubric-kardia", "gates"}
        assert all({"mean", "none_rate", "dead_rate", "groups", "flat"} <= set(one) for one in line["rewards"].values())
        assert set(line["held_out"]) == {"emotion"} and line["held_out"]["emotion"] is not None
        assert set(line["canaries"]) == {"emotion", "rubric-kardia"}
        assert line["repetition"] is not None


def test_a_run_is_verified_from_the_judges_recorded_answers(judged: Path) -> None:
    found = verify_run(judged)
    assert found.problem is None and found.checks["totals"].checked == 10


def forge(run_dir: Path, name: str, change: Any) -> str:
    """Change a line and renew the manifest; what verification says of it."""
    path = run_dir / name
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[0] = json.dumps(change(json.loads(lines[0])), ensure_ascii=False) + "\n"
    before = path.read_bytes()
    path.write_text("".join(lines), encoding="utf-8")
    (run_dir / "manifest.json").unlink()
    write_manifest(run_dir, "2026-01-01T00:00:00+00:00")
    try:
        problem = verify_run(run_dir).problem
    finally:
        path.write_bytes(before)
        (run_dir / "manifest.json").unlink()
        write_manifest(run_dir, "2026-01-01T00:00:00+00:00")
    return json.dumps(problem)


def test_a_forged_judgment_or_score_is_found_though_the_manifest_was_renewed(judged: Path) -> None:
    def better(line: dict[str, Any]) -> dict[str, Any]:
        for axis in line["verdicts"][0]["axes"]:
            axis |= {"level": 5.0, "score": 1.0}
        return line

    def higher(line: dict[str, Any]) -> dict[str, Any]:
        line["parts"][1]["value"] = 1.0 if line["parts"][1]["value"] != 1.0 else 0.5
        return line

    assert "scores.jsonl" in forge(judged, "judgments/kardia.jsonl", better)
    assert "scores.jsonl" in forge(judged, "scores.jsonl", higher)
    assert verify_run(judged).verified


def test_a_judge_that_changes_under_way_halts_the_run_by_its_canaries(model_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = 0

    def drifting(request: Request) -> str:
        nonlocal asked
        asked += 1
        answer = json.loads(verdict(request))
        if asked > 18:  # six canaries and four dialogues a step
            for axis in answer.values():
                axis["level"] = 1 + axis["level"] % 5
        return json.dumps(answer)

    with ScriptedServer(script=drifting) as server:
        given = config(model_dir, tmp_path, server.url, "trainer.steps=4")
        told: list[str] = []
        with pytest.raises(RunError, match=r"rubric-kardia of canary .* from .* to .*the judge is not the one"):
            run(Plan.of(given), Progress(phase=told.append))
    alarms = rows(given.run.folder / "alarms.jsonl")
    assert {alarm["rule"] for alarm in alarms} == {"canary"} and any(line.startswith("alarm: ") for line in told)
    assert not (given.run.folder / "manifest.json").exists()
