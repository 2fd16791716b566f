"""The record of a run with a warm start: verified as a whole, and told of in summary, release and model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_run import HELD_OUT, cards_for, make_run

from scripts.commands.demo import _tell
from tests.unit.test_verification import deep, edit, problem_of
from trainers.evaluation import Comparison, Evaluation
from trainers.manifest import write_manifest
from trainers.release import release
from trainers.verification import verify_run

SIDES = ("base", "warm_start", "tuned")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small", warm=True)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text(encoding="utf-8"))


def test_a_run_with_a_warm_start_is_verified_with_all_its_evaluations_and_comparisons(whole: Path) -> None:
    found = verify_run(whole)
    assert found.verified, found.problem
    assert found.dialogues == 12 + 4 + 4 + 4
    assert found.checks["evaluation"].checked == 3 + 3


def test_the_shares_of_warm_start_and_rl_add_up_to_the_whole_difference(whole: Path) -> None:
    summary = read(whole, "summary.json")
    shares = {name: part["mean"] for name, part in summary["shares"].items()}
    assert shares["warm_start"] + shares["rl"] == pytest.approx(summary["difference"]["mean"])
    means = [summary[side]["mean_final_emotion"] for side in SIDES]
    assert shares["warm_start"] == pytest.approx(means[1] - means[0])
    assert shares["rl"] == pytest.approx(means[2] - means[1]) and shares["rl"] != 0


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("evaluation/warm_start/evaluation.json", ("mean_final_emotion", "mean")),
        ("evaluation/warm_start/comparison.json", ("mean_final_emotion", "mean")),
        ("evaluation/tuned/comparison_warm_start.json", ("mean_final_emotion", "mean")),
        ("summary.json", ("warm_start", "mean_final_emotion")),
        ("summary.json", ("shares", "rl", "mean")),
    ],
)
def test_a_number_of_the_warm_start_forged_with_the_manifest_is_found(
    run: Path, name: str, keys: tuple[str, ...]
) -> None:
    edit(run, name, lambda data: deep(data, *keys))
    file, _, message = problem_of(verify_run(run))
    assert file == name and "computed again" in message


@pytest.mark.parametrize(
    "name",
    [
        "evaluation/warm_start/comparison.json",
        "evaluation/tuned/comparison_warm_start.json",
        "warm_start.json",
        "warm_start.jsonl",
        "adapters/warm_start/adapter_model.safetensors",
    ],
)
def test_a_warm_start_that_is_not_told_of_is_missed(run: Path, name: str) -> None:
    (run / name).unlink()
    write_manifest(run, "2026-01-01T00:00:00+00:00")
    file, _, message = problem_of(verify_run(run))
    assert file in (name, "summary.json")
    assert "is missing" in message or f"sums up {name}, which is not there" in message


def test_imitated_dialogues_of_a_held_out_card_are_found(run: Path) -> None:
    held_out = cards_for(HELD_OUT)[0]
    edit(run, "warm_start.json", lambda data: data["cards"].update({held_out.id: held_out.hash}))
    file, _, message = problem_of(verify_run(run))
    assert file == "warm_start.json" and f"cards.{held_out.id}: is no training card of this run" in message


def test_a_number_of_imitated_dialogues_that_does_not_fit_the_steps_is_found(run: Path) -> None:
    edit(run, "warm_start.json", lambda data: data.update(imitated=5))
    assert problem_of(verify_run(run))[2] == (
        "imitated: 5 dialogues, 2 times, take 6 steps; warm_start.jsonl tells of 4"
    )


def test_the_release_holds_the_final_adapter_alone_and_tells_what_the_warm_start_gave(run: Path) -> None:
    released = release(run)
    assert {path.name for path in released.iterdir()} == {
        "README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "evaluation.json"
    }  # fmt: skip
    data = read(released, "evaluation.json")
    compared = {"comparison", "comparison_warm_start_base", "comparison_tuned_warm_start"}
    assert set(data) == {*SIDES, *compared, "language"} and set(data["language"]) == set(SIDES)
    card = (released / "README.md").read_text(encoding="utf-8")
    assert "First it imitated 3 dialogues (9 replies) from talks.jsonl, 2 times,\n2 a step" in card
    assert "1 of the dialogues that were read name no persona card" in card
    warm = Evaluation.model_validate(data["warm_start"]).mean_final_emotion.mean
    gained, added = (
        Comparison.model_validate(data[name]).mean_final_emotion.mean
        for name in ("comparison_warm_start_base", "comparison_tuned_warm_start")
    )
    row = [line for line in card.splitlines() if line.startswith("| mean final emotion")][1]
    assert f"| {warm:.1f} [" in row and f"| {gained:+.1f} [" in row and f"| {added:+.1f} [" in row
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert "\n\n\n" not in card and "{{" not in card and "None" not in card


def test_the_demo_shows_each_pair_and_the_whole_difference_last(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary: dict[str, object] = {**read(whole, "summary.json"), "clients": {"training": "appraisal-v1"}}
    _tell(whole, summary, whole / "release")
    headings = [line.split() for line in capsys.readouterr().out.splitlines() if "difference" in line]
    assert headings == [
        ["warm_start", "tuned", "difference"],
        ["base", "warm_start", "difference"],
        ["base", "tuned", "difference"],
    ]
