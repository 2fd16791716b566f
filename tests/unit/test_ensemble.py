"""Ensembles: one reply heard by several clients, what disagreement costs, and whose words are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from played import CARDS, AnsweringModel, Says, both, scripted, talk

from envs.cards import PersonaCard
from envs.client_spec import SPECS_DIR, ClientSpec, load_spec
from envs.clients import make_client
from envs.clients.ensemble import spread
from envs.errors import InputError
from envs.hashing import canonical
from envs.receipts import check_emotions
from envs.trajectory import Stop, Trajectory
from trainers.replay import check_dialogue

SPEC = load_spec("ensemble-v1")
EN = CARDS["en"]


def ensemble(members: list[Any], weight: float = 0.5, **changes: Any) -> ClientSpec:
    """An ensemble of the given members, specs or their names."""
    data = SPEC.model_dump() | {"ensemble": {"members": members, "disagreement_weight": weight}}
    return ClientSpec.model_validate(data | changes)


PAIR = ensemble(["sage-v1", "rlver-challenging-v1"])  # begin at 40 and at 30


def pair_of(first: list[int], second: list[int], spec: ClientSpec = PAIR, **given: Any) -> Trajectory:
    """A talk in which the two members write these changes, turn by turn, then 0."""
    changes = [lambda turn, c=c: c[turn] if turn < len(c) else 0 for c in (first, second)]
    names = [member.name for member in spec.ensemble.members] if spec.ensemble else []
    return talk(spec, {name: both(AnsweringModel(c, name)) for name, c in zip(names, changes, strict=True)}, **given)


def test_mean_and_population_deviation_are_those_worked_out_by_hand() -> None:
    assert spread([50, 30]) == (40, 10)
    assert spread([10, 20, 60]) == (30, pytest.approx((1400 / 3) ** 0.5))
    assert spread([7]) == (7, 0)


def test_the_emotion_is_the_mean_less_the_weighted_deviation_and_both_are_recorded() -> None:
    trajectory = pair_of([10, -4], [0, 6])
    assert trajectory.opening and trajectory.opening.emotion == 35 - 0.5 * 5
    first, second = (turn.client for turn in trajectory.turns[:2])
    assert (first.emotion, first.written_change, first.change) == (40 - 0.5 * 10, 2.5, 2.5)
    assert (second.emotion, second.written_change) == (41 - 0.5 * 5, 3.5)
    assert (first.appraisal["mean"], first.appraisal["deviation"]) == (40, 10)
    assert [(m["spec"], m["emotion"], m["change"]) for m in first.appraisal["members"]] == [
        ("sage-v1", 50, 10),
        ("rlver-challenging-v1", 30, 0),
    ]
    assert first.appraisal["members"][1]["appraisal"]["appraised"]["change"] == 0


def test_without_a_weight_disagreement_costs_nothing() -> None:
    assert pair_of([10], [0], ensemble(["sage-v1", "rlver-challenging-v1"], 0.0)).emotions[:2] == [35, 40]


def test_each_member_keeps_to_its_own_clamp_and_goes_on_from_its_own_emotion() -> None:
    trajectory = pair_of([10, 10], [40, 30])
    own = [[m["emotion"] for m in turn.client.appraisal["members"]] for turn in trajectory.turns[:2]]
    assert own == [[50, 70], [60, 100]]


def test_what_is_said_is_the_voices_and_every_member_hears_it_as_its_own() -> None:
    voice, other = AnsweringModel(), AnsweringModel()
    other._counts["reply"] = 50  # so that its own words differ
    trajectory = talk(PAIR, {"sage-v1": both(voice), "rlver-challenging-v1": both(other)})
    said = [turn.client.text for turn in trajectory.turns]
    assert trajectory.stop is Stop.TURN_LIMIT and said[0] == "Well, part x of it."
    own = [turn.client.appraisal["members"][1]["text"] for turn in trajectory.turns]
    last = other.asked[-1].messages[1].content
    for unsaid, heard in zip(own[:-1], said[:-1], strict=True):
        assert unsaid not in last and heard in last
    assert EN.opening and EN.opening in last


@pytest.mark.parametrize("card", [*CARDS.values()], ids=["en", "zh"])
@pytest.mark.parametrize("order", [("attune-v1", "appraisal-v1"), ("appraisal-v1", "attune-v1")])
def test_embedded_and_played_members_listen_together_and_play_again(card: PersonaCard, order: Any) -> None:
    spec = ensemble(list(order))
    replies = Says("That second stays with you, the watch and the roundabout.", "What did you hear in the night?")
    trajectory = talk(spec, both(AnsweringModel()), replies, card)
    assert len(trajectory.turns) >= 3 and trajectory.stop is not Stop.ERROR
    check_emotions(trajectory, spec, "")
    again = Trajectory.model_validate_json(canonical(trajectory.model_dump(mode="json")))
    rules = ClientSpec.model_validate_json(canonical(spec.model_dump(mode="json")))
    assert rules.hash == spec.hash and check_dialogue(again, card, rules) is None


@pytest.mark.parametrize(
    ("first", "second", "stop", "turns"),
    [
        ([10] * 6, [40, 30], Stop.SUCCESS, 6),
        ([-10] * 3, [-10, -10, -9], Stop.FAILURE, 3),
        ([0] * 8, [70] + [0] * 7, Stop.TURN_LIMIT, 8),
        ([-10] * 4, [70] + [0] * 7, Stop.GOODBYE, 4),
    ],
    ids=["all at 100", "all low", "the turns are over", "only the voice leaves"],
)
def test_the_talk_ends_by_the_ensembles_emotion_by_the_voices_leave_or_by_the_turns(first, second, stop, turns) -> None:
    trajectory = pair_of(first, second)
    assert (trajectory.stop, len(trajectory.turns)) == (stop, turns)
    check_emotions(trajectory, PAIR, "")
    if stop is Stop.SUCCESS:
        assert trajectory.final_emotion == 100


CHANGES = st.lists(st.integers(-40, 40), min_size=8, max_size=8)


@settings(max_examples=40, deadline=None)
@given(first=CHANGES, second=CHANGES, weight=st.floats(0, 3))
def test_whatever_the_members_feel_the_record_holds_and_plays_again(first, second, weight) -> None:
    wide = {"clamp": None, "llm": load_spec("sage-v1").model_dump()["llm"] | {"change_bounds": [-50, 50]}}
    voice = ClientSpec.model_validate(load_spec("sage-v1").model_dump() | wide)
    spec = ensemble([voice.model_dump(), "rlver-challenging-v1"], weight)
    trajectory = pair_of(first, second, spec)
    assert all(0 <= emotion <= 100 for emotion in trajectory.emotions)
    assert check_dialogue(trajectory, EN, spec) is None
    for turn in trajectory.turns:
        own = [member["emotion"] for member in turn.client.appraisal["members"]]
        mean, deviation = spread(own)
        assert turn.client.emotion == pytest.approx(max(0, min(100, mean - weight * deviation)), abs=1 / 2048)


def test_a_members_forged_emotion_or_answer_does_not_play_again() -> None:
    data = pair_of([10, -4], [0, 6]).model_dump(mode="json")
    for forge in (
        lambda member: member.update(emotion=77.0),
        lambda member: member["appraisal"].update(calls=[]),
        lambda member: member.update(spec="attune-v1"),
    ):
        forged = json.loads(json.dumps(data))
        forge(forged["turns"][0]["client"]["appraisal"]["members"][1])
        finding = check_dialogue(Trajectory.model_validate(forged), EN, PAIR)
        assert finding and finding.check == "replay"


def test_one_member_that_fails_ends_the_dialogue_by_error_once_the_others_are_done() -> None:
    _, failing = scripted()
    working = AnsweringModel()
    trajectory = talk(PAIR, {"sage-v1": failing, "rlver-challenging-v1": both(working)})
    assert trajectory.stop is Stop.ERROR and trajectory.error and trajectory.error.startswith("ClientFailure: ")
    assert [ask.schema_name for ask in working.asked] == ["open", "appraise", "reply"]
    assert check_dialogue(trajectory, EN, PAIR) is None


def test_models_are_named_by_member_or_one_serves_all_and_none_may_be_missing() -> None:
    one = AnsweringModel()
    assert talk(PAIR, both(one)).stop is Stop.TURN_LIMIT and len(one.asked) == 2 * 2 * 8 + 1
    with pytest.raises(InputError, match="client spec rlver-challenging-v1 is played by a language model"):
        make_client(EN, PAIR, 0, {"sage-v1": both(one)})
    for models in (None, {}):
        with pytest.raises(InputError, match="client spec attune-v1 is played by a language model"):
            make_client(EN, SPEC, 0, models)


def test_members_have_seeds_of_their_own() -> None:
    one = AnsweringModel()
    talk(ensemble(["sage-v1", "attune-v1"]), both(one))
    assert len({ask.seed for ask in one.asked}) == len(one.asked)


def test_the_hash_covers_the_members_rules() -> None:
    sage = load_spec("sage-v1").model_dump()
    other = ensemble([sage | {"max_turns": 9}, "rlver-challenging-v1"])
    assert ensemble([sage, "rlver-challenging-v1"]).hash == PAIR.hash != other.hash
    assert ensemble(["rlver-challenging-v1", "sage-v1"]).hash != PAIR.hash


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (["sage-v1", "sage-v1"], "each spec may stand once"),
        (["sage-v1"], "ensemble.members: Tuple should have at least 2 items"),
        (["sage-v1", "ensemble-v1"], "ensemble-v1 is an ensemble itself; name its members instead"),
        (["sage-v1", "gone-v1"], "client spec 'gone-v1': there is no"),
        ("sage-v1", "ensemble.members: Input should be a valid tuple"),
    ],
)
def test_a_wrong_list_of_members_is_refused_with_the_remedy(tmp_path: Path, members: Any, said: str) -> None:
    data = yaml.safe_load((SPECS_DIR / "ensemble-v1.yaml").read_text(encoding="utf-8"))
    data["ensemble"]["members"] = members
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_spec(str(path))
    assert said in str(error.value)
