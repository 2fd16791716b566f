"""The scoreboard of recordings, against hand-worked numbers and the published ones."""

from __future__ import annotations

import json

import pytest

from envs.recordings import load_rules, read_recordings
from scripts import attune
from tests.unit.recorded import NEED, RECORDED, line, needs_sage, save_lines
from trainers.scoreboard import FileScores, score_file
from trainers.statistics import Resampling

FEW = Resampling(resamples=500)
OTHER_NEED = "你希望对方辩证地分析事件中的问题"


def scored(tmp_path, *rows) -> FileScores:
    path = save_lines(tmp_path / "r.jsonl", rows)
    return score_file(str(path), read_recordings(path), load_rules(), FEW)


def test_score_successes_and_failures_are_those_of_the_last_emotion(tmp_path):
    found = scored(tmp_path, line([10] * 6, "a"), line([-10, -10, -10, -5], "b"), line([5], "c"), line([-10] * 3, "d"))
    assert found.score == (100 + 5 + 45 + 10) / 4
    assert (found.successes, found.failures) == (1, 1)  # 10 is no failure
    assert (found.success_rate.mean, found.failure_rate.mean) == (0.25, 0.25)
    assert (found.updates, found.updates_obeying_spec, found.updates_unchecked) == (6 + 4 + 1 + 3, 14, 0)


def test_groups_are_by_need_and_temperament_and_add_up(tmp_path):
    rows = [line([5], "a"), line([10], "b", task=OTHER_NEED, character="负面型"), line([5, 5], "c", task="钱")]
    found = scored(tmp_path, *rows)
    assert {name: (one.score, one.updates) for name, one in found.by_need.items()} == {
        "dialectical_analysis": (50, 1),
        "listening": (45, 1),
        "unknown": (50, 2),
    }
    assert {name: one.dialogues for name, one in found.by_temperament.items()} == {"negative": 1, "passive": 2}
    assert found.missing == {"need": 1}
    assert NEED not in found.by_need


def test_an_update_that_breaks_the_rule_is_counted_and_the_score_stays_what_was_recorded(tmp_path):
    too_far, not_added, capped = line([15], "a"), line([5, 5], "b"), line([10] * 6 + [5], "c")
    not_added["history"][4]["emotion-point"] = 49
    found = scored(tmp_path, too_far, not_added, capped)
    assert (found.updates, found.updates_obeying_spec) == (10, 8)
    assert found.score == pytest.approx((55 + 49 + 100) / 3, abs=1e-6)
    assert found.claims_differing == 1


def test_what_was_not_recorded_is_left_out_and_never_a_zero(tmp_path):
    no_end, no_change, nothing = line([5, 5], "a"), line([10], "b"), {"id": "c"}
    del no_end["history"][4]["emotion-point"], no_change["history"][2]["planning"]
    found = scored(tmp_path, no_end, no_change, nothing)
    assert (found.score, found.dialogues, found.without_score) == (50, 3, 2)
    assert (found.updates, found.updates_obeying_spec, found.updates_unchecked) == (3, 1, 2)
    assert found.missing == {"change": 1, "emotion": 1, "history": 1, "need": 1, "temperament": 1}
    assert scored(tmp_path, nothing).score is None


def test_the_interval_takes_the_card_as_its_unit(tmp_path):
    many = scored(tmp_path, *[line([10], "a")] * 6, *[line([-10], "b")] * 6)
    assert many.score_ci95 == (30, 50) and many.success_rate.cards == 2
    assert scored(tmp_path, *[line([10], "a")] * 6).score_ci95 is None


def test_a_last_reply_that_nobody_heard_is_counted(tmp_path):
    assert scored(tmp_path, line([5], ends_unheard=True), line([5], "b")).unheard_replies == 1


def test_the_command_prints_one_object_with_a_file_each(tmp_path, capsys):
    one = save_lines(tmp_path / "a.jsonl", [line([5])])
    two = save_lines(tmp_path / "b.jsonl", [line([15]), line([10], "b")])
    assert attune.main(["sage-report", str(one), str(two), "--json", "--resamples", "50"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    keys = ("file", "score", "successes", "failures", "updates", "updates_obeying_spec")
    assert [tuple(file[key] for key in keys) for file in files] == [
        (str(one), 45, 0, 0, 1, 1),
        (str(two), 52.5, 0, 0, 2, 1),
    ]


def test_the_command_shows_a_table_and_says_what_is_amiss(tmp_path, capsys):
    row = line([15, 5], ends_unheard=True)
    del row["history"][4]["planning"]
    assert attune.main(["sage-report", str(save_lines(tmp_path / "a.jsonl", [row, line([5], "b")]))]) == 0
    out = capsys.readouterr().out
    assert "50.0%" in out and "52.50" in out
    assert "1 dialogues end with a reply that the client never answered" in out
    assert "1 updates break the rule" in out and "1 updates can't be checked" in out
    assert "missing: change 1" in out


def test_the_command_names_the_broken_line(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"id"\n', encoding="utf-8")
    assert attune.main(["sage-report", str(path)]) == 2
    assert f"{path}:2: is not valid JSON" in capsys.readouterr().err


@needs_sage
@pytest.mark.parametrize(
    ("file", "score", "successes", "failures", "updates"),
    [
        ("deepseek-v3-2024-1227__gpt-4.1.jsonl.gz", 68.15, 35, 13, 848),
        ("deepseek-v3-2024-1227__qwen2.5-72b.jsonl.gz", 19.1, 4, 70, 641),
        ("gpt-4o-2024-0806__claude3.7.jsonl.gz", 70.34, 32, 10, 863),
    ],
)
def test_the_published_scores_come_out_of_the_published_recordings(file, score, successes, failures, updates):
    found = score_file(file, read_recordings(RECORDED / file), load_rules(), FEW)
    assert found.score == pytest.approx(score)
    assert (found.successes, found.failures) == (successes, failures)
    assert found.updates == found.updates_obeying_spec == updates
    assert (found.claims_differing, found.missing, found.dialogues) == (0, {}, 100)
    assert sum(one.dialogues for one in found.by_need.values()) == 100 and len(found.by_need) == 8
    assert sum(one.successes for one in found.by_temperament.values()) == successes
