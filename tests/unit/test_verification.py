"""Verification: a run as recorded passes, and one changed digit anywhere is found and named with file and line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_run import make_run

from envs.cards import PersonaCard
from envs.errors import InputError
from envs.hashing import canonical, content_hash, without
from envs.receipts import FIRST, read_log, sealed
from envs.trajectory import Trajectory
from scripts.attune import main
from trainers import replay
from trainers.manifest import MANIFEST, file_hash, line_sums, read_manifest, write_json
from trainers.verification import CHECKS, Verification, verify_run

ROOT = Path(__file__).resolve().parents[2]
LOG = "trajectories.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it put it back or work on a copy."""
    return make_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(whole, tmp_path / "run")


def forge_manifest(run: Path) -> None:
    """Make the manifest agree with changed files, as a forger would."""
    manifest = read_manifest(run)
    for entry in manifest["files"]:
        path = run / entry["path"]
        entry |= {"sha256": file_hash(path), "bytes": path.stat().st_size}
        if "line_sums" in entry:
            entry["line_sums"] = line_sums(path)
    manifest["digest"] = content_hash(without(manifest, "digest"))
    write_json(run / MANIFEST, manifest)


def reseal(run: Path, change: Callable[[int, dict[str, Any]], object]) -> None:
    """Change trajectories (line from 1, data) and renew every receipt and the manifest, as a forger would."""
    path, previous, lines = run / LOG, FIRST, []
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        data = without(json.loads(raw), "receipt")
        change(number, data)
        data = sealed(Trajectory.model_validate(data), previous)
        previous = data["receipt"]["digest"]
        lines.append(canonical(data) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    forge_manifest(run)


def edit(run: Path, name: str, change: Callable[[dict[str, Any]], None], line: int | None = None) -> None:
    """Change a JSON file, or one line (from 1) of a JSON-lines file, and forge the manifest."""
    path = run / name
    if line is None:
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        write_json(path, data)
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        data = json.loads(lines[line - 1])
        change(data)
        lines[line - 1] = json.dumps(data, ensure_ascii=False)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    forge_manifest(run)


def problem_of(verification: Verification) -> tuple[Any, Any, str]:
    assert not verification.verified and verification.problem
    return verification.problem["file"], verification.problem["line"], str(verification.problem["message"])


def test_a_run_as_recorded_is_verified(whole: Path) -> None:
    found = verify_run(whole)
    assert found.verified, found.problem
    assert found.dialogues == 12 + 4 + 4
    recorded = [line.trajectory for path in whole.rglob(LOG) for line in read_log(path)]
    assert found.turns == sum(len(trajectory.turns) for trajectory in recorded) > 40
    assert {name: check.ok for name, check in found.checks.items()} == dict.fromkeys(CHECKS, True)
    counts = {name: check.checked for name, check in found.checks.items()}
    assert counts["emotions"] == found.turns + found.dialogues
    assert (counts["cards"], counts["metrics"], counts["evaluation"], counts["summary"]) == (5, 2, 3, 1)


def flip(text: str, position: int, other: int) -> tuple[str, int]:
    """``text`` with one digit exchanged for another, and the line (from 1) that it stands on."""
    digits = [place for place, character in enumerate(text) if character in "0123456789"]
    place = digits[position % len(digits)]
    digit = str((int(text[place]) + 1 + other % 9) % 10)
    return text[:place] + digit + text[place + 1 :], text[:place].count("\n") + 1


@pytest.mark.parametrize("forged", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), other=st.integers(0, 8))
@example(position=0, other=0)
@example(position=-1, other=8)
def test_any_changed_digit_of_a_trajectory_is_found(whole: Path, forged: bool, position: int, other: int) -> None:
    path, manifest = whole / LOG, (whole / MANIFEST).read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    changed, line = flip(text, position, other)
    try:
        path.write_text(changed, encoding="utf-8")
        if forged:
            forge_manifest(whole)
        file, named, _ = problem_of(verify_run(whole))
    finally:
        path.write_text(text, encoding="utf-8")
        (whole / MANIFEST).write_text(manifest, encoding="utf-8")
    assert file == LOG
    assert named in (line, line + 1)


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "scores.jsonl",
        "summary.json",
        "evaluation/base/trajectories.jsonl",
        "evaluation/base/evaluation.json",
        "evaluation/tuned/evaluation.json",
        "evaluation/tuned/comparison.json",
        "evaluation/tuned/language.json",
        "cards.jsonl",
        "config.yaml",
        "specs/appraisal-v1.json",
        "provenance.json",
    ],
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), other=st.integers(0, 8))
def test_any_changed_digit_of_any_other_record_is_found(whole: Path, name: str, position: int, other: int) -> None:
    text = (whole / name).read_text(encoding="utf-8")
    changed, line = flip(text, position, other)
    try:
        (whole / name).write_text(changed, encoding="utf-8")
        assert problem_of(verify_run(whole))[:2] == (name, line)
    finally:
        (whole / name).write_text(text, encoding="utf-8")


def test_weights_that_were_changed_are_found(run: Path) -> None:
    path = run / "adapters" / "final" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert problem_of(verify_run(run))[:2] == ("adapters/final/adapter_model.safetensors", None)


def test_an_emotion_forged_with_new_receipts_is_found_by_the_rules(run: Path) -> None:
    def brighten(number: int, data: dict[str, Any]) -> None:
        if number == 3:
            data["turns"][1]["client"]["emotion"] += 1

    reseal(run, brighten)
    verification = verify_run(run)
    file, line, message = problem_of(verification)
    assert (file, line) == (LOG, 3)
    assert message.startswith("turn 2: emotion ")
    assert verification.checks["emotions"].ok is False
    assert verification.checks["replay"].ok is None


def forged_reply(data: dict[str, Any]) -> str:
    data["turns"][0]["supporter"]["text"] = "It's your own fault."
    return "turn 1: "


def forged_answer(data: dict[str, Any]) -> str:
    data["turns"][0]["client"]["text"] += " Thank you."
    return "turn 1: text is recorded as "


def forged_reason(data: dict[str, Any]) -> str:
    data["turns"][0]["client"]["appraisal"]["perceived"]["questions"] += 1
    return "turn 1: appraisal.perceived.questions is recorded as "


def forged_rise(data: dict[str, Any]) -> str:
    """Every emotion follows from its written change, but the client would not have written it."""
    for turn in data["turns"]:
        turn["client"]["emotion"] += 1
    first = data["turns"][0]["client"]
    first["change"], first["written_change"] = first["change"] + 1, first["change"] + 1
    return "turn 1: "


def forged_start(data: dict[str, Any]) -> str:
    data["opening"]["emotion"] += 1
    for turn in data["turns"]:
        turn["client"]["emotion"] += 1
    return "the opening: emotion is recorded as "


def forged_seed(data: dict[str, Any]) -> str:
    """Another seed deals the client's lines in another order."""
    data["seed"] = 12345
    return "turn "


def forged_end(data: dict[str, Any]) -> str:
    """A talk cut short says that it had reached the limit."""
    data["turns"] = data["turns"][:1]
    data["turns"][0]["client"]["stop"] = None
    data["stop"] = "turn_limit"
    return "says that it reached the turn limit"


@pytest.mark.parametrize(
    "forge", [forged_reply, forged_answer, forged_reason, forged_rise, forged_start, forged_seed, forged_end]
)
def test_a_talk_forged_with_new_receipts_is_found_by_playing_it_again(
    run: Path, forge: Callable[[dict[str, Any]], str]
) -> None:
    said = []
    reseal(run, lambda number, data: said.append(forge(data)) if number == 2 else None)
    verification = verify_run(run)
    file, line, message = problem_of(verification)
    assert (file, line) == (LOG, 2)
    assert message.startswith(said[0])
    assert verification.checks["emotions"].ok is False or verification.checks["replay"].ok is False


def test_a_client_whose_code_has_changed_since_is_told_apart_from_a_forgery(run: Path) -> None:
    edit(run, "provenance.json", lambda data: data.update(client="0" * 64))
    reseal(run, lambda number, data: forged_answer(data) if number == 2 else None)
    assert "the client's code has changed since the run" in problem_of(verify_run(run))[2]


def test_a_line_taken_away_breaks_the_chain(run: Path) -> None:
    lines = (run / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    (run / LOG).write_text("".join(lines[:4] + lines[5:]), encoding="utf-8")
    forge_manifest(run)
    assert problem_of(verify_run(run))[:2] == (LOG, 5)


def test_an_end_taken_away_with_a_forged_manifest_is_missed_by_the_scores(run: Path) -> None:
    lines = (run / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    (run / LOG).write_text("".join(lines[:-1]), encoding="utf-8")
    forge_manifest(run)
    file, _, message = problem_of(verify_run(run))
    assert (file, message) == ("scores.jsonl", "holds 12 scores for 11 dialogues")


def test_a_metric_forged_with_the_manifest_is_found(run: Path) -> None:
    edit(run, "metrics.jsonl", lambda data: data.update(mean_final_emotion=99.0), line=2)
    file, line, message = problem_of(verify_run(run))
    assert (file, line) == ("metrics.jsonl", 2)
    assert message.startswith("mean_final_emotion is recorded as 99.0, computed again it is ")


def test_a_step_that_is_missing_from_the_metrics_is_found(run: Path) -> None:
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    forge_manifest(run)
    assert problem_of(verify_run(run))[2].startswith("tells of 1 steps")


@pytest.mark.parametrize("key", ["value", "advantage"])
def test_a_score_forged_with_the_manifest_is_found(run: Path, key: str) -> None:
    edit(run, "scores.jsonl", lambda data: data.update({key: 0.123}), line=5)
    file, line, message = problem_of(verify_run(run))
    assert (file, line) == ("scores.jsonl", 5)
    assert message.startswith(f"{key} is recorded as 0.123")


def deep(data: dict[str, Any], *keys: str) -> None:
    for key in keys[:-1]:
        data = data[key]
    data[keys[-1]] += 1


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("evaluation/base/evaluation.json", ("mean_final_emotion", "mean")),
        ("evaluation/tuned/evaluation.json", ("dialogues",)),
        ("evaluation/tuned/comparison.json", ("success_rate", "mean")),
        ("evaluation/tuned/language.json", ("words", "mean")),
        ("summary.json", ("tuned", "mean_final_emotion")),
        ("summary.json", ("difference", "mean")),
        ("summary.json", ("dialogues",)),
    ],
)
def test_a_result_forged_with_the_manifest_is_found(run: Path, name: str, keys: tuple[str, ...]) -> None:
    edit(run, name, lambda data: deep(data, *keys))
    file, line, message = problem_of(verify_run(run))
    assert file == name
    assert f'"{keys[-1]}":' in (run / name).read_text(encoding="utf-8").splitlines()[line - 1]
    assert message.startswith(".".join(keys) + " is recorded as ")


def test_thresholds_other_than_the_clients_are_found(run: Path) -> None:
    edit(run, "evaluation/base/evaluation.json", lambda data: data["settings"].update(success_at=60.0))
    file, _, _ = problem_of(verify_run(run))
    assert file == "evaluation/base/evaluation.json"


def test_a_card_that_was_changed_no_longer_has_its_hash(run: Path) -> None:
    edit(run, "cards.jsonl", lambda data: data["card"].update(start_emotion=90), line=1)
    assert problem_of(verify_run(run))[:2] == ("cards.jsonl", 1)


def test_a_card_with_a_new_hash_is_not_the_one_that_was_played(run: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        data["card"]["start_emotion"] = 90
        data["hash"] = PersonaCard.model_validate(data["card"]).hash

    edit(run, "cards.jsonl", swap, line=1)
    file, line, message = problem_of(verify_run(run))
    assert (file, line) == (LOG, 1)
    assert "not in cards.jsonl" in message


def test_rules_that_were_changed_are_not_those_that_were_played_by(run: Path) -> None:
    edit(run, "specs/appraisal-v1.json", lambda data: data.update(clamp=20.0))
    assert "not in specs/" in problem_of(verify_run(run))[2]


def test_weights_of_rewards_come_from_the_runs_config(run: Path) -> None:
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("name: emotion", "name: kindness"), encoding="utf-8")
    forge_manifest(run)
    assert problem_of(verify_run(run))[0] == "config.yaml"


def test_an_unfinished_run_can_not_be_verified(run: Path) -> None:
    (run / MANIFEST).unlink()
    with pytest.raises(InputError, match="unfinished"):
        verify_run(run)
    with pytest.raises(InputError, match="no such run folder"):
        verify_run(run / "elsewhere")


def test_many_dialogues_are_checked_by_several_processes_with_the_same_result(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "FEW", 0)
    monkeypatch.setattr(replay, "CHUNK", 2)
    assert verify_run(run).verified
    reseal(run, lambda number, data: forged_answer(data) if number == 9 else None)
    assert problem_of(verify_run(run))[:2] == (LOG, 9)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_run_is_verified_by_another_process_which_loads_no_model_library(whole: Path, hash_seed: str) -> None:
    """Another process: the order of its sets differs, and nothing recorded may hang on that."""
    code = (
        f"import sys; from scripts.attune import main; status = main(['verify', {str(whole)!r}])\n"
        "assert not {'torch', 'transformers', 'trl', 'vllm'} & set(sys.modules); sys.exit(status)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_prints_one_json_object_and_exits_with_the_verdict(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verified"], told["dialogues"], told["problem"]) == (True, 20, None)
    text = (run / LOG).read_text(encoding="utf-8")
    (run / LOG).write_text(flip(text, 700, 0)[0], encoding="utf-8")
    assert main(["verify", str(run), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["verified"], told["problem"]["file"], told["problem"]["line"]) == (False, LOG, 1)


def test_the_command_tells_a_person_what_was_checked_and_where_the_problem_is(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["verify", str(run)]) == 0
    told = capsys.readouterr().out
    assert "turns that come back when the client is played again" in told
    assert "verified: 20 dialogues" in told
    edit(run, "metrics.jsonl", lambda data: data.update(reward=0.9), line=1)
    assert main(["verify", str(run)]) == 1
    assert "run/metrics.jsonl:1: reward is recorded as 0.9" in capsys.readouterr().out.replace("\n", "")


def test_the_command_refuses_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "unfinished" in capsys.readouterr().err.replace("\n", " ")
