"""Affect: PELD's personality-affected transition worked out by hand, inertia, and the range."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.affect import Affect, from_emotion, moved, step, susceptibility
from envs.cards import BigFive

PERSON = BigFive(openness=0.5, conscientiousness=0.6, extraversion=0.4, agreeableness=0.8, neuroticism=0.7)
UNIT = st.floats(0, 1)
PUSH = st.floats(-1, 1)
TRAITS = st.builds(
    BigFive, openness=UNIT, conscientiousness=UNIT, extraversion=UNIT, agreeableness=UNIT, neuroticism=UNIT
)


def test_susceptibility_is_pelds_mix_of_the_big_five():
    # V: 0.21*0.4 + 0.59*0.8 + 0.19*0.7 = 0.084 + 0.472 + 0.133
    # A: 0.15*0.5 + 0.30*0.8 - 0.57*0.7 = 0.075 + 0.240 - 0.399
    # D: 0.25*0.5 + 0.17*0.6 + 0.60*0.4 - 0.32*0.8 = 0.125 + 0.102 + 0.240 - 0.256
    assert susceptibility(PERSON) == pytest.approx((0.689, -0.084, 0.211))


@pytest.mark.parametrize(
    ("trait", "expected"),
    [
        ("openness", (0, 0.15, 0.25)),
        ("conscientiousness", (0, 0, 0.17)),
        ("extraversion", (0.21, 0, 0.60)),
        ("agreeableness", (0.59, 0.30, -0.32)),
        ("neuroticism", (0.19, -0.57, 0)),
    ],
)
def test_each_trait_alone_gives_its_column(trait, expected):
    alone = dict.fromkeys(BigFive.model_fields, 0.0) | {trait: 1.0}
    assert susceptibility(BigFive(**alone)) == pytest.approx(expected)


def test_inertia_holds_its_share_of_a_move_back():
    # 0.75 of (0.5 * 0.689, -0.2 * -0.084, 1.0 * 0.211)
    assert step(PERSON, 0.25, Affect(0.5, -0.2, 1.0)) == pytest.approx((0.258375, 0.0126, 0.15825))


def test_no_inertia_lets_all_of_it_through_and_full_inertia_nothing():
    push = Affect(0.5, 0.5, 0.5)
    assert step(PERSON, 0.0, push) == pytest.approx((0.3445, -0.042, 0.1055))
    assert step(PERSON, 1.0, push) == (0, 0, 0)


def test_a_move_adds_to_each_dimension_and_stops_at_the_ends():
    assert moved(Affect(0.2, -0.9, 0.9), Affect(0.3, -0.4, 0.4)) == pytest.approx((0.5, -1.0, 1.0))


@pytest.mark.parametrize(("emotion", "valence"), [(0, -1), (25, -0.5), (50, 0), (100, 1)])
def test_a_talk_starts_from_the_valence_of_its_emotion(emotion, valence):
    assert from_emotion(emotion) == (valence, 0, 0)


@settings(deadline=None)
@given(traits=TRAITS, inertia=UNIT, push=st.builds(Affect, PUSH, PUSH, PUSH), start=st.builds(Affect, PUSH, PUSH, PUSH))
def test_valence_follows_the_push_and_affect_stays_in_range(traits, inertia, push, start):
    move = step(traits, inertia, push)
    assert move.valence * push.valence >= 0 and abs(move.valence) <= abs(push.valence)
    assert all(-1 <= value <= 1 for value in moved(start, move))
