"""Receipts: the chain over a trajectory file, what a change anywhere is told as, and recomputed emotions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.client_spec import ClientSpec, load_spec
from envs.errors import RunError
from envs.hashing import canonical, content_hash, without
from envs.receipts import FIRST, ReceiptError, TrajectoryLog, check_emotions, read_log, sealed
from envs.trajectory import ClientTurn, Generation, Stop, Trajectory
from tests.unit.dialogues import card, trajectory

SPEC = load_spec("appraisal-v1")
WHO = card("en-who")
DIALOGUES = [trajectory(WHO, seed, [45 + seed, 50, 48]) for seed in range(4)]


def log(folder: Path, *dialogues: Trajectory) -> Path:
    path = folder / "log.jsonl"
    TrajectoryLog(path).append(*(dialogues or DIALOGUES))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(ReceiptError) as error:
        list(read_log(path))
    return str(error.value)


# Writing and reading back


def test_what_was_written_is_read_back_in_order(tmp_path):
    lines = list(read_log(log(tmp_path)))
    assert [line.trajectory for line in lines] == DIALOGUES
    assert [line.number for line in lines] == [1, 2, 3, 4]


def test_each_line_follows_the_digest_of_the_one_before(tmp_path):
    receipts = [json.loads(raw)["receipt"] for raw in log(tmp_path).read_text(encoding="utf-8").splitlines()]
    assert [receipt["previous"] for receipt in receipts] == [FIRST, *(receipt["digest"] for receipt in receipts[:-1])]


def test_the_digest_of_a_line_and_the_chain_of_its_turns_can_be_recomputed_by_hand():
    data = sealed(DIALOGUES[0], FIRST)
    receipt = data["receipt"]
    assert receipt["digest"] == content_hash(data | {"receipt": without(receipt, "digest")})
    start = content_hash(without(data, "turns", "stop", "error", "receipt"))
    first = content_hash([start, data["turns"][0]])
    assert receipt["turns"][:2] == [first, content_hash([first, data["turns"][1]])]


def test_lines_written_one_by_one_after_reopening_are_the_same_file(tmp_path):
    at_once = log(tmp_path).read_bytes()
    path = tmp_path / "slow.jsonl"
    for dialogue in DIALOGUES:
        TrajectoryLog(path).append(dialogue)
    assert path.read_bytes() == at_once


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_torn_last_line_is_named_and_on_reopening_cut_off(tmp_path, cut):
    path = log(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert error_of(path) == f"{path}:4: the line is torn; the run was interrupted while writing it"
    TrajectoryLog(path).append(DIALOGUES[3])
    assert path.read_bytes() == whole


def test_a_file_torn_in_its_first_line_is_begun_again(tmp_path):
    path = log(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    TrajectoryLog(path).append(*DIALOGUES)
    assert path.read_bytes() == whole


def test_a_broken_line_is_not_gone_on_from(tmp_path):
    path = log(tmp_path)
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(ReceiptError, match=r"log\.jsonl:5: is not a line with a receipt; start a new run"):
        TrajectoryLog(path)


def test_a_folder_that_is_gone_is_named_with_a_remedy(tmp_path):
    with pytest.raises(RunError, match=r"gone.*log\.jsonl: can't be written: .* then resume"):
        TrajectoryLog(tmp_path / "gone" / "log.jsonl").append(DIALOGUES[0])


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    assert "there is no such file" in error_of(tmp_path / "none.jsonl")
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    assert "is not UTF-8 text" in error_of(path)


@given(st.text(st.sampled_from('\ud800\udfff\n\r\u2028\x00"\\ 你a'), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_text_survives_lone_surrogates_too(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    odd = trajectory(WHO, 0, [45, 50], replies=[Generation(text=text), Generation(text="fine")])
    TrajectoryLog(path).append(odd)
    TrajectoryLog(path).append(odd)
    assert [line.trajectory for line in read_log(path)] == [odd, odd]


# Changes


EDITS: dict[str, tuple[Callable[[list[str]], list[str]], int]] = {
    "a line twice": (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
    "a line put before the first": (lambda lines: [lines[3], *lines], 1),
    "the first line removed": (lambda lines: lines[1:], 1),
    "a line removed": (lambda lines: [lines[0], *lines[2:]], 2),
    "two lines swapped": (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_line_added_removed_or_swapped_is_named_where_the_chain_breaks(tmp_path, case):
    edit, number = EDITS[case]
    path = log(tmp_path)
    path.write_text("".join(edit(path.read_text(encoding="utf-8").splitlines(True))), encoding="utf-8")
    assert error_of(path).startswith(f"{path}:{number}: does not follow the line before it")


def test_a_line_of_another_file_is_named(tmp_path):
    path = log(tmp_path)
    stranger = canonical(sealed(DIALOGUES[0], "1" * 64)) + "\n"
    path.write_text(path.read_text(encoding="utf-8") + stranger, encoding="utf-8")
    assert error_of(path).startswith(f"{path}:5: does not follow")


@pytest.mark.parametrize(("turn", "told"), [(0, "turn 1 (or what"), (1, "turn 2 (or what"), (2, "turn 3 (or what")])
def test_a_changed_turn_is_named(tmp_path, turn, told):
    assert told in changed(tmp_path, 2, lambda data: data["turns"][turn]["client"].update(emotion=99))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(stop="success"),
        lambda data: data["receipt"].update(digest="0" * 64),
        lambda data: data["receipt"]["turns"].append("0" * 64),
        lambda data: data["receipt"].update(turns=[]),
        lambda data: data["receipt"].update(signed="me"),
    ],
)
def test_a_change_outside_the_turns_is_told_from_the_digest(tmp_path, change):
    assert "the line differs from its digest" in changed(tmp_path, 2, change)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("receipt"),
        lambda data: data.update(receipt=5),
        lambda data: data["receipt"].update(turns=5),
        lambda data: data.update(turns=5),
        lambda data: data.update(mood=1),
        lambda data: data["turns"][0]["client"].update(emotion=float("nan")),
    ],
)
def test_a_line_that_is_no_sealed_trajectory_is_named(tmp_path, change):
    assert "is not a trajectory with a receipt" in changed(tmp_path, 2, change)


def test_a_number_that_is_none_is_a_change_as_well(tmp_path):
    spoil = changed(tmp_path, 2, lambda data: data["turns"][0]["client"]["appraisal"].update(push=float("nan")))
    assert spoil.startswith("turn 1 (or what stands before it) differs")


def changed(folder: Path, number: int, change: Callable[[dict[str, Any]], object]) -> str:
    """The error that the changed line ``number`` is read with, less its place, which must be that line."""
    path = log(folder)
    lines = path.read_text(encoding="utf-8").splitlines()
    data = json.loads(lines[number - 1])
    change(data)
    lines[number - 1] = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    place, error = f"{path}:{number}: ", error_of(path)
    assert error.startswith(place)
    return error.removeprefix(place)


@given(place=st.floats(0, 1, exclude_max=True), byte=st.sampled_from(b'0a9 "{}[],:\\\r\x00\n'))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_a_changed_byte_anywhere_is_named_with_its_line(tmp_path, place, byte):
    path = tmp_path / "log.jsonl"
    if not path.exists():
        log(tmp_path, *DIALOGUES[:2])
    whole = path.read_bytes()
    at = int(place * len(whole))
    if whole[at] == byte:
        return
    try:
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        assert error_of(path).startswith(f"{path}:{1 + whole[:at].count(10)}: ")
    finally:
        path.write_bytes(whole)


def test_other_line_endings_are_a_change(tmp_path):
    path = log(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert error_of(path).startswith(f"{path}:1: ")


# Emotions


def played(*turns: tuple[float, float, float], stop: Stop = Stop.TURN_LIMIT, said: Stop | None = None) -> Trajectory:
    """A dialogue from emotion 40, of turns (written change, change, emotion); the last turn says ``said``."""
    made = [ClientTurn(text="x", written_change=w, change=c, emotion=e) for w, c, e in turns]
    made[-1] = made[-1].model_copy(update={"stop": said})
    base = trajectory(WHO, 0, [40.0] * len(turns), stop=stop)
    pairs = zip(base.turns, made, strict=True)
    return base.model_copy(update={"turns": tuple(turn.model_copy(update={"client": c}) for turn, c in pairs)})


def test_emotions_that_follow_from_the_written_changes_pass():
    check_emotions(played((8, 8, 48), (-25, -10, 38), (0, 0, 38)), SPEC, "here")


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        (((8, 8, 49),), "turn 1: emotion 40 with a written change of +8 gives 48, not the recorded 49 (change +8)"),
        (((8, 9, 48),), "turn 1: emotion 40 with a written change of +8 gives 48, not the recorded 48 (change +9)"),
        (((12, 12, 52),), "turn 1: emotion 40 with a written change of +12 gives 50, not the recorded 52"),
        (((8, 8, 48), (-3, -3, 44)), "turn 2: emotion 48 with a written change of -3 gives 45, not the recorded 44"),
    ],
)
def test_an_emotion_that_does_not_follow_is_named_with_its_turn(turns, told):
    with pytest.raises(ReceiptError) as error:
        check_emotions(played(*turns), SPEC, "log:3")
    assert str(error.value).startswith(f"log:3: {told}")


def test_emotions_are_checked_by_the_rules_of_their_own_spec():
    narrow = ClientSpec.model_validate(SPEC.model_dump() | {"clamp": 5})
    check_emotions(played((8, 5, 45)), narrow, "here")
    with pytest.raises(ReceiptError, match="gives 45"):
        check_emotions(played((8, 8, 48)), narrow, "here")


@pytest.mark.parametrize(
    ("stop", "said"), [(Stop.SUCCESS, None), (Stop.TURN_LIMIT, Stop.GOODBYE), (Stop.FAILURE, Stop.SUCCESS)]
)
def test_a_stop_that_the_last_turn_does_not_bear_out_is_refused(stop, said):
    with pytest.raises(ReceiptError, match=f"says that it stopped by {stop.value}"):
        check_emotions(played((8, 8, 48), stop=stop, said=said), SPEC, "here")


def test_a_dialogue_that_failed_is_checked_as_far_as_it_went():
    check_emotions(played((8, 8, 48), stop=Stop.ERROR), SPEC, "here")
    with pytest.raises(ReceiptError, match="turn 1"):
        check_emotions(played((8, 8, 49), stop=Stop.ERROR), SPEC, "here")
    unopened = trajectory(WHO, 0, [], stop=Stop.ERROR).model_copy(update={"opening": None})
    check_emotions(unopened, SPEC, "here")
