"""What a sweep's report says of made-up finished runs, compared with numbers worked by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from envs.errors import InputError
from scripts import attune
from scripts.sweep_tables import ARMS, PAIRS, arm_rows, markdown, pair_rows
from tests.unit.small_run import make_run
from tests.unit.sweeps import make_sweep, set_finals
from trainers.manifest import write_json, write_manifest
from trainers.sweep_report import SweepReport, report_sweep

TUNED = {
    "grpo": {0: [20.0, 30.0, 40.0, 50.0], 1: [30.0, 30.0, 60.0, 60.0]},
    "ppo": {0: [22.0, 32.0, 44.0, 54.0], 1: [28.0, 28.0, None, 70.0]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("sweep") / "small")


@pytest.fixture
def out(tmp_path: Path, run: Path) -> Path:
    return make_sweep(tmp_path / "out", run, TUNED)


def test_the_gain_of_an_arm_is_a_mean_over_cards_with_all_seeds_of_a_card_together(out: Path) -> None:
    grpo, ppo = report_sweep(out).arms
    # card a: 10, 20, 20, 20 -> 17.5; card b: 30, 40, 50, 50 -> 42.5
    assert grpo.gain is not None and grpo.base is not None and grpo.tuned is not None
    assert (grpo.gain.mean, grpo.gain.ci95, grpo.gain.n, grpo.gain.cards) == (30.0, (17.5, 42.5), 8, 2)
    assert (grpo.base.mean, grpo.tuned.mean) == (10.0, 40.0)
    # card b of ppo: 34, 44, -, 60 -> 46; card a: 12, 22, 18, 18 -> 17.5
    assert ppo.gain is not None
    assert (ppo.gain.mean, ppo.gain.n, ppo.gain.missing) == (31.75, 7, 1)


def test_each_seed_stands_with_an_interval_of_its_own(out: Path) -> None:
    gains = [cell.gain for cell in report_sweep(out).arms[0].cells]
    # seed 0: cards 15 and 35; seed 1: cards 20 and 50
    assert [(gain.mean, gain.ci95, gain.n) for gain in gains if gain] == [(25.0, (15, 35), 4), (35.0, (20, 50), 4)]


def test_arms_are_compared_dialogue_by_dialogue_with_the_same_training_seed(out: Path) -> None:
    (pair,) = report_sweep(out).pairs
    # seed 0: 2, 2 and 4, 4; seed 1: -2, -2 and -, 10. card a: 0; card b: (4 + 4 + 10) / 3 = 6
    assert (pair.arm, pair.other) == ("ppo", "grpo")
    assert pair.difference is not None
    assert (pair.difference.mean, pair.difference.ci95, pair.difference.missing) == (3.0, (0, 6), 1)
    assert [(one.seed, one.difference.mean) for one in pair.seeds] == [(0, 3.0), (1, 4.0)]
    assert pair.dialogues_share == 1.0


def test_the_curve_is_that_of_the_runs_own_metrics(out: Path, run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    cell = report_sweep(out).arms[0].cells[0]
    assert cell.curve == pytest.approx([line["mean_final_emotion"] for line in lines], abs=1e-6)
    assert cell.dialogues == (6, 12)
    assert (cell.training_dialogues, cell.seconds) == (12, 12.5)
    assert cell.smoothed == (None, None)


def test_a_run_that_was_resumed_has_no_wall_clock(out: Path) -> None:
    path = out / "grpo-seed0" / "provenance.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"resumed": [{"at": "later"}]})
    write_manifest(path.parent, "2026-01-01T00:00:00+00:00")
    assert [cell.seconds for cell in report_sweep(out).arms[0].cells] == [None, 12.5]


def test_a_missing_seed_is_left_out_of_the_arm_and_of_the_pair_and_named(out: Path) -> None:
    (out / "ppo-seed1" / "manifest.json").unlink()
    log = out / "ppo-seed1.log"
    log.write_text("$ attune train\nerror: older\n$ attune train\nsteps\nerror: the server is gone\n", encoding="utf-8")
    report = report_sweep(out)
    assert report.problems == {"ppo-seed1": "the server is gone"}
    ppo, (pair,) = report.arms[1], report.pairs
    assert ppo.gain is not None and ppo.gain.n == 4
    assert pair.difference is not None and (pair.difference.mean, len(pair.seeds)) == (3.0, 1)
    log.write_text("$ attune train\nerror: older\n$ attune train --resume\nstep 1\n", encoding="utf-8")
    assert report_sweep(out).problems == {"ppo-seed1": "unfinished"}


def test_an_arm_without_a_finished_run_has_no_numbers(out: Path) -> None:
    for seed in (0, 1):
        (out / f"ppo-seed{seed}").rename(out / f"gone-{seed}")
    report = report_sweep(out)
    assert set(report.problems.values()) == {"not run"}
    assert (report.arms[1].gain, report.pairs[0].difference, report.pairs[0].reach) == (None, None, None)
    assert [row[1:] for row in arm_rows(report)[3:]] == [("-",) * len(ARMS)] * 3


def test_a_changed_record_and_one_that_did_not_verify_are_no_results(out: Path) -> None:
    with (out / "grpo-seed0" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    summary = out / "ppo-seed0" / "summary.json"
    write_json(summary, json.loads(summary.read_text(encoding="utf-8")) | {"verified": False})
    write_manifest(summary.parent, "2026-01-01T00:00:00+00:00")
    problems = report_sweep(out).problems
    assert "differs from the manifest's hash" in problems["grpo-seed0"]
    assert "did not verify" in problems["ppo-seed0"]


def test_cells_with_different_held_out_dialogues_are_refused(out: Path) -> None:
    path = out / "grpo-seed0" / "evaluation" / "tuned" / "evaluation.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["outcomes"][0]["seed"] = 7
    write_json(path, data)
    base = path.parents[1] / "base" / "evaluation.json"
    data = json.loads(base.read_text(encoding="utf-8"))
    data["outcomes"][0]["seed"] = 7
    write_json(base, data)
    write_manifest(out / "grpo-seed0", "2026-01-01T00:00:00+00:00")
    with pytest.raises(InputError, match="different dialogues"):
        report_sweep(out)


def test_a_folder_without_a_grid_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no grid"):
        report_sweep(tmp_path)


def test_the_report_comes_out_the_same_again_byte_for_byte(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("sweep.json", "sweep.md", "sweep.svg", "sweep-dark.svg", "sweep.png", "sweep-dark.png")
    assert attune.main(["sweep", "--report", str(out)]) == 0
    first = {name: (out / name).read_bytes() for name in names}
    for name in names:
        (out / name).unlink()
    assert attune.main(["sweep", "--report", str(out), "--json"]) == 0
    assert {name: (out / name).read_bytes() for name in names} == first
    printed = capsys.readouterr().out.splitlines()[-1]
    assert SweepReport.model_validate_json(printed) == SweepReport.model_validate_json(first["sweep.json"])


def test_table_and_page_show_the_numbers_of_the_report(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_sweep(out)
    rows = {row[0]: dict(zip(ARMS, row[1:], strict=True)) for row in arm_rows(report)[:3]}
    assert rows["grpo (2 of 2)"]["gain"] == "+30.0 [17.5, 42.5]"
    assert (rows["  seed 1"]["gain"], rows["  seed 1"]["tuned"]) == ("+35.0 [20.0, 50.0]", "45.0")
    assert rows["  seed 1"]["minutes (training)"] == "0.2 (0.0)"
    pairs = dict(zip(PAIRS, pair_rows(report)[0][1:], strict=True))
    assert (pairs["dialogues, %"], pairs["final emotion"], pairs["level"]) == ("100", "+3.0 [0.0, 6.0]", "-")
    page = markdown(report, ("sweep.svg", "sweep-dark.svg"))
    assert "| **grpo (2 of 2)** | 12 | 10.0 | 40.0 | +30.0 [17.5, 42.5] |" in page
    assert attune.main(["sweep", "--report", str(out)]) == 0
    assert re.search(r"grpo \(2 of 2", capsys.readouterr().out)


def test_the_drawing_survives_runs_that_failed(out: Path) -> None:
    set_finals(out / "grpo-seed0", "tuned", [None] * 4)
    write_manifest(out / "grpo-seed0", "2026-01-01T00:00:00+00:00")
    (out / "ppo-seed0" / "manifest.json").unlink()
    (out / "ppo-seed1" / "manifest.json").unlink()
    assert attune.main(["sweep", "--report", str(out)]) == 1
    assert (out / "sweep.png").stat().st_size > 1000
