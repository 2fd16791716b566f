"""A run whose gates have a second reader: read, logged, and verified without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_played_client import ROOT, rows
from tests.integration.test_rubric_run import SAID, config, forge, verdict
from tests.scripted_server import Request, ScriptedServer
from tests.tiny_policy import tiny_model
from trainers.plan import Plan
from trainers.run import Progress, run
from trainers.verification import verify_run

pytestmark = pytest.mark.integration


def answer(request: Request) -> str:
    """A judge's verdict, or a reader's: by its letters a reply closes every gate whose evidence is the reply's own."""
    schema = request["response_format"]["json_schema"]
    if schema["name"] != "gates":
        return verdict(request)
    reply = SAID.findall(request["messages"][1]["content"])[-1][1]
    found = {"evidence": reply, "closed": True} if sum(map(ord, reply)) % 2 else {"evidence": "", "closed": False}
    return json.dumps(dict.fromkeys(schema["schema"]["properties"], found))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; its reader is gone."""
    model_dir = tiny_model(tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(script=answer) as server:
        patch.chdir(ROOT)
        reader = {"endpoint": {"base_url": server.url, "model": "reader"}}
        more = ["gates.read_only=[crisis, medical]", "gates.judged=[medical]", f"gates.models={json.dumps([reader])}"]
        given = config(model_dir, tmp_path_factory.mktemp("runs"), server.url, *more)
        assert run(Plan.of(given), Progress())["verified"] is True
    return given.run.folder


def test_every_dialogue_has_a_line_with_the_raw_answers_and_its_gates_stand_in_the_scores(read: Path) -> None:
    readings, scores = rows(read / "judgments/gates.jsonl"), rows(read / "scores.jsonl")
    assert len(readings) == len(scores) == 8
    assert all(call["raw"] for line in readings for one in line["opinions"] for call in one["calls"])
    told = {line["dialogue_id"]: line["parts"][-1]["evidence"] for line in scores}
    states = set()
    for line in readings:
        for found in line["verdicts"]:
            states.add(found["closed"])
            if found["closed"]:
                assert f"medical closed at turn {found['turn'] + 1} (read by reader)" in told[line["dialogue_id"]]
    assert True in states


def test_the_run_is_verified_from_the_recorded_answers_and_a_forged_one_is_found(read: Path) -> None:
    found = verify_run(read)
    assert found.problem is None and found.checks["totals"].checked == 10

    def opened(line: dict[str, Any]) -> dict[str, Any]:
        for one in line["verdicts"]:
            one |= {"closed": not one["closed"]}
        return line

    def rewritten(line: dict[str, Any]) -> dict[str, Any]:
        call = line["opinions"][0]["calls"][-1]
        call["raw"] = json.dumps({"medical": {"evidence": "never said by anybody", "closed": True}})
        return line

    assert "scores.jsonl" in forge(read, "judgments/gates.jsonl", opened)
    assert "scores.jsonl" in forge(read, "judgments/gates.jsonl", rewritten)
    assert verify_run(read).verified
