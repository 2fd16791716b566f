"""Appraisal: which way each thing that a reply does moves the feeling, by how much, and the reason it leaves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.cards import HARMS, Act, HiddenNeed, PersonaCard
from envs.client_spec import load_spec
from envs.clients.appraise import GOOD_STRATEGIES, Mood, Verdict, appraise, mood_after, phase_of, push_of
from envs.perception.percept import Move, Percept
from tests.unit.dialogues import card

RULES = load_spec("appraisal-v1").embedded
# Avoidant: warmth counts in full, harms 1.05 times. Nothing in the tests below soothes or hurts unless it says so.
PERSON = card(
    "en-person",
    hidden_need="real_advice",
    temperament="avoidant",
    soothes=[{"act": "self_disclosure", "because": "he trusts who tells too"}] * 2,
    hurts=[{"act": "information", "because": "he knows the numbers"}] * 2,
)
EXPLORE, COMFORT, ACT = Mood(disclosed=0), Mood(disclosed=2), Mood(disclosed=4)


def percept(*acts: str, moves: tuple[str, ...] = (), **changes: Any) -> Percept:
    """A well-made reply of twenty words that takes up what the client said."""
    plain = {"acts": acts or ("other",), "moves": moves, "uptake": 1.0, "taken_up": ("letter",), "questions": 0}
    plain |= {"words": 20, "echo": 0.0, "repetition": 0.0, "gibberish": 0.0, "flattery": False, "meta": False}
    return Percept.model_validate(plain | {"evidence": {}} | changes)


def judged(heard: Percept, mood: Mood = EXPLORE, who: PersonaCard = PERSON) -> Verdict:
    return appraise(heard, mood, who.script, RULES)


@pytest.mark.parametrize(
    ("disclosed", "phase"),
    [(0, "explore"), (1, "explore"), (2, "comfort"), (3, "comfort"), (4, "act"), (9, "act")],
)
def test_the_phase_follows_the_facts_disclosed(disclosed, phase):
    assert phase_of(disclosed, RULES) == phase


# Strategies


@pytest.mark.parametrize(
    ("act", "pushes"),
    [
        ("question", (0.35, 0.30, 0.20)),
        ("restatement", (0.45, 0.45, 0.35)),
        ("reflection", (0.55, 0.55, 0.45)),
        ("affirmation", (0.25, 0.45, 0.45)),
    ],
)
def test_a_strategy_gives_its_push_of_the_phase_and_is_its_own_reason(act, pushes):
    for mood, push in zip((EXPLORE, COMFORT, ACT), pushes, strict=True):
        assert judged(percept(act), mood).reasons == [(act, push)]


@pytest.mark.parametrize(
    ("act", "push", "cause"),
    [("suggestion", -0.45, "suggestion"), ("information", -0.15, None), ("self_disclosure", -0.15, None)],
)
def test_advice_facts_and_own_stories_come_too_early_before_anything_was_told(act, push, cause):
    verdict = judged(percept(act), who=card("en-x", hurts=other("blaming")))
    assert verdict.reasons == [(f"{act.replace('_', ' ')} too early", push)]
    assert verdict.cause == cause


def other(act: str) -> list[dict[str, str]]:
    return [{"act": act, "because": "it does"}] * 2


def test_a_second_strategy_adds_its_share_and_a_third_nothing():
    # 0.55 + 0.35 * 0.45; affirmation (0.25) is the third.
    verdict = judged(percept("affirmation", "restatement", "reflection"))
    assert verdict.reasons == [("reflection", 0.55), ("restatement", 0.1575)]
    assert verdict.primary is Act.REFLECTION


def test_an_open_question_is_worth_more_than_a_closed_one():
    assert judged(percept("question", moves=("open_question",))).valence == pytest.approx(0.35 + 0.10)


def test_asking_first_softens_advice():
    assert judged(percept("suggestion", moves=("asks_permission",))).valence == pytest.approx(-0.45 + 0.30)


def test_the_same_kind_of_reply_as_last_time_is_worth_less():
    verdict = judged(percept("reflection"), Mood(last_act=Act.REFLECTION))
    assert verdict.reasons[-1] == ("the same kind of reply as last time", -0.15)
    assert verdict.valence == pytest.approx(0.40)
    assert judged(percept("reflection"), Mood(last_act=Act.QUESTION)).valence == pytest.approx(0.55)


def test_small_talk_moves_nothing_and_leaves_no_reason():
    assert judged(percept("other")).reasons == []


# Harms


@pytest.mark.parametrize(
    ("act", "push"),
    [
        ("blaming", -0.84),  # -0.80 * 1.05
        ("minimising", -0.6825),  # -0.65 * 1.05
        ("ordering", -0.63),  # -0.60 * 1.05
        ("lecturing", -0.63),
        ("changing_subject", -0.63),
        ("persuading", -0.525),  # -0.50 * 1.05
    ],
)
def test_each_harm_pushes_down_and_is_named_as_reason_and_cause(act, push):
    verdict = judged(percept(act))
    assert verdict.reasons == [(f"was {act.replace('_', ' ')}", push)]
    assert (verdict.valence, verdict.cause) == (push, act)


def test_a_second_harm_adds_half_of_its_push():
    # -0.65 * 1.05 first, then half of -0.50 * 1.05.
    verdict = judged(percept("persuading", "minimising"))
    assert verdict.reasons == [("was minimising", -0.6825), ("was persuading", -0.2625)]
    assert verdict.cause == "minimising"


@pytest.mark.parametrize(("temperament", "push"), [("negative", -1.0), ("passive", -0.72), ("avoidant", -0.84)])
def test_a_temperament_feels_a_harm_in_its_own_measure(temperament, push):
    # -0.80 * 1.30 = -1.04, of which -1 is the most that can be felt.
    assert judged(percept("blaming"), who=card("en-x", temperament=temperament)).valence == pytest.approx(push)


@pytest.mark.parametrize(("temperament", "push"), [("negative", 0.5225), ("passive", 0.495), ("avoidant", 0.55)])
def test_a_temperament_warms_in_its_own_measure(temperament, push):
    plain = card("en-x", temperament=temperament, soothes=other("affirmation"), hidden_need="real_advice")
    assert judged(percept("reflection"), who=plain).valence == pytest.approx(push)


@pytest.mark.parametrize("act", [act.value for act in HARMS])
def test_nothing_good_in_a_reply_makes_up_for_a_harm(act):
    assert judged(percept(act, "reflection", "restatement")).reasons == judged(percept(act)).reasons


def test_what_hurts_this_person_hurts_even_when_others_would_not_mind():
    verdict = judged(percept("information", "reflection"), ACT)
    assert verdict.reasons[0] == ("information hurts: he knows the numbers", -0.30)
    assert verdict.cause is None


def test_a_harm_that_hurts_this_person_hurts_twice():
    verdict = judged(percept("minimising"), who=card("en-x"))  # whose card says that minimising hurts
    assert [push for _, push in verdict.reasons] == [-0.6825, -0.30]
    assert verdict.reasons[1][0].startswith("minimising hurts: The letter already told him")


# Manner

SPOILS_ALL = {
    "said nothing": ({"words": 0}, -0.50, "silence"),
    "talked about scores or instructions instead of me": ({"meta": True}, -0.90, "meta"),
    "made no sense": ({"gibberish": 0.5}, -0.80, "gibberish"),
    "handed my own words back": ({"echo": 0.6}, -0.40, "echo"),
    "said what it had said before": ({"repetition": 0.8}, -0.45, "repetition"),
    "a wall of text": ({"words": 111}, -0.60, "wall"),
}
SPOILS_SOME = {  # what is left of a reflection's 0.55
    "came out garbled": ({"gibberish": 0.2}, -0.40, "garbled", 0.25),
    "sounded much like before": ({"repetition": 0.6}, -0.15, None, 0.5),
    "went on too long": ({"words": 61}, -0.15, None, 0.7),
    "asked too much at once": ({"questions": 3}, -0.25, "interrogation", 1.0),
    "praised without knowing me": ({"flattery": True}, -0.25, "flattery", 0.3),
}


@pytest.mark.parametrize("reason", SPOILS_ALL)
def test_a_manner_that_spoils_a_reply_leaves_nothing_of_its_warmth(reason):
    changes, push, cause = SPOILS_ALL[reason]
    verdict = judged(percept("reflection", **changes))
    assert verdict.reasons == [(reason, push)]
    assert verdict.cause == cause


@pytest.mark.parametrize("reason", SPOILS_SOME)
def test_a_manner_that_mars_a_reply_leaves_a_share_of_its_warmth(reason):
    changes, push, cause, left = SPOILS_SOME[reason]
    verdict = judged(percept("reflection", **changes))
    assert verdict.reasons == [(reason, push), ("reflection", pytest.approx(0.55 * left, abs=1e-4))]
    assert verdict.cause == cause


@pytest.mark.parametrize(
    "changes",
    [{"gibberish": 0.19}, {"echo": 0.59}, {"repetition": 0.59}, {"words": 60}, {"words": 3}, {"questions": 2}],
)
def test_just_inside_every_limit_nothing_is_spoilt(changes):
    assert judged(percept("reflection", **changes)).reasons == [("reflection", 0.55)]


def test_a_word_or_two_carry_little_warmth():
    assert judged(percept("reflection", words=2)).reasons == [("reflection", 0.165)]


def test_each_further_repetition_weighs_more():
    pushes = [judged(percept(repetition=1.0), Mood(repetitions=count)).valence for count in (0, 1, 2)]
    assert pushes == pytest.approx([-0.45, -0.60, -0.75])


def test_the_client_reacts_to_what_spoilt_the_reply_most():
    # Blaming (-0.84) outweighs the repetition (-0.45) and the question after question (-0.25).
    verdict = judged(percept("blaming", repetition=0.9, questions=4))
    assert verdict.cause == "blaming"
    assert judged(percept("persuading", repetition=0.9, meta=True)).cause == "meta"


# Questions in a row


def test_the_third_reply_that_only_asks_is_an_interrogation():
    asks = percept("question", questions=1)
    assert judged(asks, Mood(questions=1)).reasons == [("question", 0.35)]
    third = judged(asks, Mood(questions=2))
    assert third.reasons == [("kept asking and never stayed with an answer", -0.40)]
    assert third.cause == "interrogation"


def test_a_question_with_something_else_is_never_an_interrogation():
    assert judged(percept("question", "reflection", questions=1), Mood(questions=5)).valence == pytest.approx(0.6725)


def test_replies_that_only_ask_are_counted_until_one_does_more():
    counts, mood = [], Mood()
    for acts in (("question",), ("question", "other"), ("question", "reflection"), ("question",)):
        heard = percept(*acts, questions=1)
        mood = mood_after(mood, heard, judged(heard, mood), 1.0, False, RULES)
        counts.append(mood.questions)
    assert counts == [1, 2, 0, 1]


# Replies that could have been said to anyone


@pytest.mark.parametrize(
    ("before", "warmth", "push"), [(0, 0.40, 0.0), (1, 0.15, -0.10), (2, 0.0, -0.25), (7, 0.0, -0.25)]
)
def test_a_reply_to_anyone_may_pass_once_and_no_longer_the_third_time(before, warmth, push):
    verdict = judged(percept("reflection", uptake=0.29), Mood(generic=before))
    told = [("could have been said to anyone", push)] if push else []
    warm = [("reflection", pytest.approx(0.55 * warmth, abs=1e-4))] if warmth else []
    assert verdict.reasons == told + warm
    assert verdict.cause == ("generic" if push else None)


def test_a_reply_that_takes_up_enough_is_not_for_anyone():
    assert judged(percept("reflection", uptake=0.30), Mood(generic=9)).reasons == [("reflection", 0.55)]


def test_a_spoilt_reply_is_not_blamed_for_being_general_as_well():
    assert judged(percept(uptake=0.0, gibberish=1.0), Mood(generic=5)).reasons == [("made no sense", -0.80)]


def test_general_replies_are_counted_and_each_particular_one_takes_one_back():
    counts, mood = [], Mood()
    for uptake in (0.0, 0.29, 0.30, 1.0, 1.0):
        heard = percept(uptake=uptake)
        mood = mood_after(mood, heard, judged(heard, mood), 0.0, False, RULES)
        counts.append(mood.generic)
    assert counts == [1, 2, 1, 0, 0]


# What this person waits for

NEEDS: dict[str, tuple[Percept, float, tuple[str, ...]]] = {
    "dialectical_analysis": (percept(moves=("weighs_sides",), acts=("restatement",)), 0.40, ("comfort", "act")),
    "real_advice": (percept("suggestion"), 0.45, ("act",)),  # in comfort advice is still too early to warm
    "others_motives": (percept(moves=("considers_others",), acts=("restatement",)), 0.40, ("comfort", "act")),
    "guided_self_reflection": (
        percept("question", moves=("invites_reflection",)),
        0.35,
        ("explore", "comfort", "act"),
    ),
    "sincere_praise": (percept("affirmation"), 0.35, ("comfort", "act")),
    "listening": (percept("restatement"), 0.25, ("explore", "comfort", "act")),
    "deep_empathy": (percept("reflection"), 0.25, ("explore", "comfort", "act")),
    "not_at_fault": (percept(moves=("absolves",), acts=("affirmation",)), 0.40, ("comfort", "act")),
}
BONUS = "what I had been hoping for, without saying it"


@pytest.mark.parametrize("need", [need.value for need in HiddenNeed])
def test_a_need_is_met_from_its_phase_on_and_not_before(need):
    heard, push, phases = NEEDS[need]
    waiting = card("en-x", hidden_need=need, temperament="avoidant", soothes=other("self_disclosure"))
    for phase, mood in {"explore": EXPLORE, "comfort": COMFORT, "act": ACT}.items():
        # Suggestions hurt the person of the model card; that leaves the bonus as it is.
        verdict = judged(heard, mood, waiting)
        assert ((BONUS, push) in verdict.reasons) is (phase in phases), phase
        assert verdict.met_need is (phase in phases)


@pytest.mark.parametrize("need", [need.value for need in HiddenNeed])
def test_nobody_is_given_what_somebody_else_waits_for(need):
    heard, _, _ = NEEDS[need]
    signals = {*heard.acts, *heard.moves}
    for lacking in HiddenNeed:
        if not signals & set(RULES.needs[lacking].signals):
            assert BONUS not in dict(judged(heard, ACT, card("en-x", hidden_need=lacking)).reasons)


def test_a_need_that_is_met_in_a_reply_to_anyone_is_met_by_its_share_only():
    verdict = judged(percept("reflection", uptake=0.0), who=card("en-x", hidden_need="deep_empathy"))
    assert (BONUS, 0.10) in verdict.reasons  # 0.25 * 0.40
    assert not verdict.met_need


def test_what_soothes_this_person_adds_to_what_soothes_everybody():
    verdict = judged(percept("self_disclosure"), COMFORT)
    assert verdict.reasons == [("self disclosure", 0.05), ("self disclosure soothes: he trusts who tells too", 0.15)]


# Suspicion


def test_talk_of_scores_is_not_forgotten_and_halves_all_later_warmth():
    asked = percept(meta=True)
    mood = mood_after(Mood(), asked, judged(asked), -10.0, False, RULES)
    assert mood.suspicious
    warm = percept("reflection")
    assert judged(warm, mood).reasons == [("reflection", 0.275)]
    assert mood_after(mood, warm, judged(warm, mood), 5.0, True, RULES).suspicious


# The mood that is carried on, and the push on all three dimensions


def test_a_turn_without_a_rise_counts_as_flat_until_one_rises():
    counts, mood, heard = [], Mood(), percept()
    for change in (0.0, -3.0, 0.0, 2.0, 0.0):
        mood = mood_after(mood, heard, judged(heard), change, False, RULES)
        counts.append(mood.flat)
    assert counts == [1, 2, 3, 0, 1]


def test_the_mood_keeps_what_was_disclosed_repeated_and_done_last():
    heard = percept("restatement", "reflection", repetition=0.8)
    mood = mood_after(Mood(disclosed=3, repetitions=1), heard, judged(heard), 0.0, True, RULES)
    assert (mood.disclosed, mood.repetitions, mood.last_act) == (4, 2, Act.REFLECTION)


@pytest.mark.parametrize(
    ("heard", "push"),
    [
        (percept("reflection"), (0.55, -0.275, 0.165)),
        (percept("blaming"), (-0.84, 0.504, 0.0)),
        (percept("ordering"), (-0.63, 0.378, -0.4)),
        (percept(), (0.0, 0.0, 0.0)),
    ],
)
def test_warmth_calms_and_hurt_stirs_and_orders_take_dominance_away(heard, push):
    assert push_of(judged(heard), heard) == pytest.approx(push)


PERCEPTS = st.builds(
    percept,
    acts=st.lists(st.sampled_from(list(Act)), min_size=1, unique=True).map(tuple),
    moves=st.lists(st.sampled_from(list(Move)), unique=True).map(tuple),
    uptake=st.floats(0, 1),
    questions=st.integers(0, 5),
    words=st.integers(0, 200),
    echo=st.floats(0, 1),
    repetition=st.floats(0, 1),
    gibberish=st.floats(0, 1),
    flattery=st.booleans(),
    meta=st.booleans(),
)
MOODS = st.builds(
    Mood,
    disclosed=st.integers(0, 7),
    generic=st.integers(0, 8),
    questions=st.integers(0, 8),
    repetitions=st.integers(0, 8),
    last_act=st.none() | st.sampled_from(GOOD_STRATEGIES),
    suspicious=st.booleans(),
)


@settings(deadline=None)
@given(heard=PERCEPTS, mood=MOODS)
def test_whatever_is_noticed_every_push_has_a_reason_and_the_sum_is_felt_within_one(heard, mood):
    verdict = judged(heard, mood)
    assert all(reason for reason, _ in verdict.reasons)
    assert verdict.cause is None or any(push < 0 for _, push in verdict.reasons)
    assert verdict.valence == max(-1, min(1, sum(push for _, push in verdict.reasons)))
    if any(act in HARMS for act in heard.acts) or heard.meta or heard.words == 0:
        assert verdict.valence < 0
    assert verdict == judged(heard, mood)
