"""What went wrong in the public releases of SAGE and RLVER, one invariant each, by the mistake's name."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import CARDS, AnsweringModel, Says, both, scripted, spec_with, talk
from pydantic import ValidationError

from envs.client_spec import SPECS_DIR, load_spec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, run_dialogues
from envs.trajectory import Stop
from trainers.config import RunConfig
from trainers.run_numbers import Scorer, credit_of, step_numbers

EN = CARDS["en"]
PLAYED = [name for name in sorted(path.stem for path in SPECS_DIR.glob("*.yaml")) if load_spec(name).kind == "llm"]


def test_the_specs_under_test_are_all_those_that_a_language_model_plays() -> None:
    assert PLAYED == ["attune-brief-v1", "attune-v1", "rlver-challenging-v1", "rlver-vanilla-v1", "sage-v1"]


# "The appraiser is told 'emotion 30' on every turn, because the state isn't written back"


@pytest.mark.parametrize("name", PLAYED)
def test_each_appraisal_is_told_the_emotion_that_the_turn_before_left(name: str) -> None:
    model = AnsweringModel(lambda turn: (4, -7, 9, 10, -2, 3, 1, 0, 6, -5)[turn])
    trajectory = talk(load_spec(name), both(model))
    asked = [ask.messages[1].content for ask in model.asked if ask.schema_name == "appraise"]
    told = [float(re.findall(r"Your emotion before the reply: (\S+)", prompt)[0]) for prompt in asked]
    assert told == trajectory.emotions[:-1] and len(set(told)) > 3


# "After the first early stop, replies go to the wrong user (an index into a list that shrinks)"


def test_every_client_hears_its_own_supporter_whichever_dialogues_ended_before() -> None:
    spec, models = load_spec("sage-v1"), [AnsweringModel(lambda turn, n=n: -10 if n % 3 == 0 else 1) for n in range(9)]
    plans = [
        DialoguePlan(f"d{n}", EN, spec, n, make_client(EN, spec, n, both(model)), Says(f"supporter-{n} speaks."))
        for n, model in enumerate(models)
    ]
    trajectories = asyncio.run(run_dialogues(plans, concurrency=9))
    assert [len(trajectory.turns) for trajectory in trajectories] == [4, 10, 10] * 3
    for n, model in enumerate(models):
        heard = "\n".join(message.content for ask in model.asked for message in ask.messages)
        assert set(re.findall(r"supporter-(\d+) speaks", heard)) == {str(n)}
        assert len([ask for ask in model.asked if ask.schema_name == "appraise"]) == len(trajectories[n].turns)


# "The tenth reply is never scored"


@pytest.mark.parametrize("name", PLAYED)
def test_the_last_reply_is_appraised_too_and_moves_the_final_emotion(name: str) -> None:
    spec = load_spec(name)
    last = spec.max_turns - 1
    model = AnsweringModel(lambda turn: 9 if turn == last else 0)
    supporter = Says(*[f"Reply number {turn}." for turn in range(spec.max_turns)])
    trajectory = talk(spec, both(model), supporter)
    asked = [ask.messages[1].content for ask in model.asked if ask.schema_name == "appraise"]
    assert len(trajectory.turns) == len(asked) == len(supporter.saw) == spec.max_turns
    assert f"Reply number {last}." in asked[-1].split("newest reply:")[1]
    assert trajectory.opening and trajectory.final_emotion == trajectory.opening.emotion + 9


def test_the_benchmark_hears_ten_replies() -> None:
    assert load_spec("sage-v1").max_turns == 10


# "Unlimited retry every 3 s"


@pytest.mark.parametrize("name", PLAYED)
def test_what_can_not_be_used_is_asked_for_a_bounded_number_of_times_and_without_waiting(name: str) -> None:
    spec = spec_with(name, {"opening": "card"})
    assert spec.llm and spec.llm.attempts == 3
    model, models = scripted(*["nothing that can be read"] * 50)
    began = time.monotonic()
    trajectory = talk(spec, models)
    assert len(model.asked) == 3 and time.monotonic() - began < 1
    assert trajectory.stop is Stop.ERROR and trajectory.final_emotion is None


# "The emotion has no floor"


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(PLAYED), changes=st.lists(st.integers(-100, 100), min_size=10, max_size=10))
def test_no_emotion_leaves_nought_to_a_hundred(name: str, changes: list[int]) -> None:
    spec = load_spec(name)
    low, high = spec.llm.change_bounds if spec.llm else (0, 0)
    trajectory = talk(spec, both(AnsweringModel(lambda turn: max(low, min(high, changes[turn])))))
    assert trajectory.stop is not Stop.ERROR
    assert all(0 <= emotion <= 100 for emotion in trajectory.emotions)


def test_a_talk_that_would_fall_below_nought_ends_at_nought() -> None:
    trajectory = talk(load_spec("rlver-challenging-v1"), both(AnsweringModel(lambda turn: -50)))
    assert (trajectory.emotions, trajectory.stop) == ([30, 0], Stop.FAILURE)
    assert trajectory.turns[0].client.written_change == -50


@pytest.mark.parametrize("path", sorted(SPECS_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_spec_has_the_floor_at_nought(path) -> None:
    assert load_spec(str(path)).floor == 0


# "Temperature 0.5 and no seed under the name 'deterministic'"


@pytest.mark.parametrize("name", PLAYED)
def test_every_call_goes_out_at_temperature_nought_with_a_seed_of_its_own_that_is_recorded(name: str) -> None:
    model = AnsweringModel()
    trajectory = talk(load_spec(name), both(model), seed=8)
    assert {ask.temperature for ask in model.asked} == {0}
    seeds = [ask.seed for ask in model.asked]
    assert len(set(seeds)) == len(seeds)
    appraisals = [turn.client.appraisal for turn in trajectory.turns]
    opening = trajectory.opening.appraisal["calls"] if trajectory.opening else []
    assert [call["seed"] for call in [*opening, *(call for a in appraisals for call in a["calls"])]] == seeds
    again, other = AnsweringModel(), AnsweringModel()
    talk(load_spec(name), both(again), seed=8)
    talk(load_spec(name), both(other), seed=9)
    assert [ask.prompt_hash for ask in again.asked] == [ask.prompt_hash for ask in model.asked]
    assert not {ask.seed for ask in other.asked} & set(seeds)


def test_a_temperature_over_nought_is_refused_without_a_retest() -> None:
    with pytest.raises(ValidationError, match="retests must be at least 1 at a temperature over 0"):
        spec_with(llm={"temperature": 0.5})
    assert spec_with(llm={"temperature": 0.5, "retests": 1}).llm


# "Group statistics are taken over turn rows, so long dialogues weigh more"


def test_a_long_dialogue_weighs_no_more_in_its_group_than_a_short_one(tmp_path) -> None:
    spec = spec_with("sage-v1", {"start_emotion": 15})
    long = talk(spec, both(AnsweringModel(lambda turn: 6)))
    short = talk(spec, both(AnsweringModel(lambda turn: -10)))
    assert [len(long.turns), len(short.turns)] == [10, 1]
    config = RunConfig.model_validate({"trainer": {"dialogues_per_card": 2, "scale_rewards": "none", "micro_batch": 1}})
    with Scorer(config, tmp_path) as scorer:
        rows = [scorer.played(trajectory) for trajectory in (long, short)]
    # Final emotions 75 and 5: over dialogues the mean is 0.4; over the eleven turn rows it would be 0.69.
    assert [row.total for row in rows] == [0.75, 0.05]
    assert credit_of(rows, config).advantages == (pytest.approx(0.35), pytest.approx(-0.35))
    assert step_numbers(rows, config)["reward"] == pytest.approx(0.4)
