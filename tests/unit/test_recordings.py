"""Recordings: what is read of them, how they become trajectories, and the client that plays them again."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.cards import HiddenNeed, Temperament
from envs.client_spec import load_spec
from envs.clients.replay import ReplayClient
from envs.dialogue import DialoguePlan, run_dialogue
from envs.errors import InputError
from envs.importers.convert import Origin, import_cards
from envs.recordings import Recording, load_rules, read_recordings, recorded_card, recorded_trajectory
from envs.supporters import FixedReplies
from envs.trajectory import Message, Stop, Trajectory
from rewards.emotion import EmotionReward
from tests.unit import dialogues
from tests.unit.recorded import RECORDED, SAGE, line, needs_sage, save_lines

ORIGIN = Origin(kind="sage", source="a test", licence="CC0-1.0", split="test")


def read(tmp_path: Path, *rows: dict) -> list[Recording]:
    return read_recordings(save_lines(tmp_path / "recorded.jsonl", rows))


def trajectory(tmp_path: Path, row: dict) -> Trajectory:
    [recording] = read(tmp_path, row)
    return recorded_trajectory(recording, recorded_card(recording, ORIGIN))


def test_a_recording_is_read_with_its_need_temperament_emotions_and_changes(tmp_path):
    [recording] = read(tmp_path, line([5, -10], ends_unheard=True))
    assert (recording.id, recording.hidden_need, recording.temperament) == (
        "ab-1",
        HiddenNeed.LISTENING,
        Temperament.PASSIVE,
    )
    assert [(u.before, u.change, u.after) for u in recording.updates] == [(40, 5, 45), (45, -10, 35)]
    assert (recording.final_emotion, recording.claimed) == (35, 35)
    assert recording.unheard == "没有人听到的回复"
    assert recording.missing == []


def test_a_gzipped_file_reads_like_a_plain_one_whatever_its_name(tmp_path):
    plain = save_lines(tmp_path / "a.jsonl", [line([5]), line([10], card="ab-2")])
    packed = tmp_path / "b.jsonl"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [r.said for r in read_recordings(plain)] == [r.said for r in read_recordings(packed)]


@pytest.mark.parametrize("broken", ['{"id": ', "[1]", "7", '{"id": "x"} {}'])
def test_a_broken_line_is_named_by_file_and_line(tmp_path, broken):
    path = save_lines(tmp_path / "r.jsonl", [line([5])])
    path.write_text(path.read_text(encoding="utf-8") + "\n" + broken + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"r\.jsonl:3: "):
        read_recordings(path)


def test_a_file_that_is_cut_off_in_its_gzip_is_refused_by_name(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "x"}' * 50)[:-9])
    with pytest.raises(InputError, match=r"r\.jsonl\.gz: can't be read"):
        read_recordings(path)


def test_what_a_recording_lacks_is_none_and_counted_never_zero(tmp_path):
    row = line([5, 5], id=None, character="夜猫型")
    del row["history"][4]["emotion-point"], row["history"][2]["planning"]
    [recording] = read(tmp_path, row)
    assert recording.final_emotion is None
    assert [(u.change, u.after) for u in recording.updates] == [(None, 45), (5, None)]
    assert recording.missing == ["id", "temperament", "emotion", "change"]
    [empty] = read(tmp_path, {"history": "none"})
    assert (empty.said, empty.final_emotion, empty.updates) == ((), None, [])
    assert empty.missing == ["id", "need", "temperament", "history"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_messages = st.dictionaries(
    st.sampled_from(["role", "content", "emotion-point", "planning", "change", "think"]),
    json_values | st.sampled_from(["user", "assistant", "41"]),
)


@settings(max_examples=60, deadline=None)
@given(history=st.lists(odd_messages | json_values, max_size=6), rest=st.dictionaries(st.text(max_size=4), json_values))
def test_any_history_is_read_and_becomes_a_trajectory_that_fails_or_holds(tmp_path_factory, history, rest):
    row = line([5]) | rest | {"history": history}
    [recording] = read_recordings(save_lines(tmp_path_factory.mktemp("any") / "r.jsonl", [row]))
    card = dialogues.card("en-any")
    played = recorded_trajectory(recording, card)
    assert (played.stop is Stop.ERROR) == (played.error is not None)
    assert played.stop is Stop.ERROR or len(played.turns) >= 1


def test_a_recording_becomes_a_trajectory_with_the_hashes_of_its_card_and_rule(tmp_path):
    [recording] = read(tmp_path, line([5, -10]))
    card = recorded_card(recording, ORIGIN)
    played = recorded_trajectory(recording, card)
    assert (played.card_id, played.card_hash) == ("zh-sage-ab-1", card.hash)
    assert (played.spec, played.spec_hash) == ("sage-recorded-v1", load_rules().hash)
    assert played.emotions == [40, 45, 35]
    assert [turn.supporter.text for turn in played.turns] == ["回复1", "回复2"]
    assert played.turns[1].client.appraisal == {"recorded_emotion": 35, "activity": "想法2"}
    assert (card.hidden_need, card.temperament, card.opening) == ("listening", "passive", "你好。")
    assert card.notes == {"topic": "邻里"}


@pytest.mark.parametrize(
    ("row", "stop"),
    [
        (line([10] * 6), Stop.SUCCESS),
        (line([-10, -10, -10, -5]), Stop.FAILURE),
        (line([5, 5], ends_unheard=True), Stop.TURN_LIMIT),
        (line([5, 5]), Stop.GOODBYE),
    ],
)
def test_why_a_recorded_dialogue_ended_follows_from_its_emotion_and_who_spoke_last(tmp_path, row, stop):
    played = trajectory(tmp_path, row)
    assert played.stop is stop
    assert played.turns[-1].client.stop is (None if stop is Stop.TURN_LIMIT else stop)


def test_a_change_beyond_the_clamp_is_felt_as_far_as_the_rule_lets_it_and_both_are_kept(tmp_path):
    played = trajectory(tmp_path, line([30]))
    client = played.turns[0].client
    assert (client.written_change, client.change, client.emotion) == (30, 10, 50)
    assert client.appraisal["recorded_emotion"] == 70


def test_a_recording_that_breaks_off_is_a_failed_dialogue_that_keeps_what_was_said(tmp_path):
    row = line([5, 5])
    del row["history"][4]["emotion-point"], row["history"][4]["planning"]
    played = trajectory(tmp_path, row)
    assert (played.stop, played.final_emotion, len(played.turns)) == (Stop.ERROR, None, 1)
    assert played.error == "message 5 has neither a change nor an emotion"


def test_a_recording_without_a_whole_card_says_what_is_missing(tmp_path):
    [recording] = read(tmp_path, line([5], player=""))
    with pytest.raises(InputError, match=r"holds no whole card: .*profile: is missing"):
        recorded_card(recording, ORIGIN)


def spoken(client: ReplayClient, replies: list[str]) -> list:
    async def talk() -> list:
        turns = [await client.open()]
        history = [Message(speaker="client", text=turns[0].text)]
        for reply in replies:
            history.append(Message(speaker="supporter", text=reply))
            turns.append(await client.reply(history))
            history.append(Message(speaker="client", text=turns[-1].text))
        return turns

    return asyncio.run(talk())


def test_the_replaying_client_says_and_feels_what_was_recorded(tmp_path):
    played = trajectory(tmp_path, line([5, -10]))
    turns = spoken(ReplayClient(played, load_rules()), ["回复1", "回复2"])
    assert turns == [played.opening, *(turn.client for turn in played.turns)]


def test_the_replaying_client_feels_by_the_rule_that_it_is_given(tmp_path):
    played = trajectory(tmp_path, line([10, 10]))
    narrow = load_rules().model_copy(update={"clamp": 3.0})
    turns = spoken(ReplayClient(played, narrow), ["回复1", "回复2"])
    assert [(turn.emotion, turn.change, turn.written_change) for turn in turns[1:]] == [(43, 3, 10), (46, 3, 10)]


def test_the_replaying_client_refuses_another_reply_unless_any_will_do(tmp_path):
    played = trajectory(tmp_path, line([5]))
    with pytest.raises(ValueError, match=r"turn 1 of .* was recorded with another reply"):
        spoken(ReplayClient(played, load_rules()), ["另一句"])
    assert spoken(ReplayClient(played, load_rules(), any_reply=True), ["另一句"])[1].emotion == 45


def test_the_replaying_client_does_not_go_on_after_its_record(tmp_path):
    played = trajectory(tmp_path, line([5]))
    with pytest.raises(ValueError, match="ends after 1 turns"):
        spoken(ReplayClient(played, load_rules()), ["回复1", "回复1"])


def test_a_replayed_dialogue_of_our_own_is_the_same_trajectory():
    spec = load_spec("appraisal-v1")
    recorded = dialogues.trajectory(dialogues.card("en-ann"), 0, [45, 40, 30], stop=Stop.TURN_LIMIT)
    short = spec.model_copy(update={"max_turns": 3})
    supporter = FixedReplies([turn.supporter.text for turn in recorded.turns])
    card, client = dialogues.card("en-ann"), ReplayClient(recorded, short)
    plan = DialoguePlan(recorded.dialogue_id, card, short, recorded.seed, client, supporter)
    again = asyncio.run(run_dialogue(plan))
    assert (again.opening, again.emotions) == (recorded.opening, recorded.emotions)
    assert [t.client for t in again.turns] == [t.client for t in recorded.turns]


def test_a_reward_is_scored_over_a_recording(tmp_path):
    assert asyncio.run(EmotionReward().score(trajectory(tmp_path, line([5, -10])))).value == pytest.approx(0.35)


@needs_sage
@pytest.mark.parametrize(
    ("file", "final", "stops"),
    [
        ("deepseek-v3-2024-1227__gpt-4.1.jsonl.gz", 68.15, (35, 13, 52, 0)),
        ("deepseek-v3-2024-1227__qwen2.5-72b.jsonl.gz", 19.1, (4, 70, 25, 1)),
        ("gpt-4o-2024-0806__claude3.7.jsonl.gz", 70.34, (32, 10, 58, 0)),
    ],
)
def test_the_published_recordings_replay_to_every_emotion_they_hold(file, final, stops):
    cards = {card.id: card for card in import_cards(str(SAGE), ORIGIN).cards}
    recordings = read_recordings(RECORDED / file)
    played = [recorded_trajectory(one, cards[recorded_card(one, ORIGIN).id]) for one in recordings]
    turns = [turn.client for one in played for turn in one.turns]
    assert all(turn.emotion == turn.appraisal["recorded_emotion"] for turn in turns) and len(turns) > 600
    assert sum(one.final_emotion or 0 for one in played) / len(played) == pytest.approx(final)
    kinds = (Stop.SUCCESS, Stop.FAILURE, Stop.TURN_LIMIT, Stop.GOODBYE)
    assert tuple(sum(one.stop is kind for one in played) for kind in kinds) == stops
    for one in played[:20]:
        replies = [turn.supporter.text for turn in one.turns]
        assert spoken(ReplayClient(one, load_rules()), replies)[1:] == [turn.client for turn in one.turns]


def test_a_file_without_a_dialogue_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="holds no dialogue"):
        read_recordings(tmp_path / "empty.jsonl")
