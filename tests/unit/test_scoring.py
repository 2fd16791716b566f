"""A dialogue's total: rewards by weight, what gates void, and which judges may carry weight."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from envs.errors import InputError
from envs.trajectory import Generation, Score, Trajectory
from rewards.emotion import EmotionReward
from tests.unit.dialogues import card, trajectory
from trainers.config import RunConfig
from trainers.credit import GroupDecoupled, GroupRelative, row_parts
from trainers.reward_config import Gates
from trainers.run_numbers import reward_numbers
from trainers.scoring import Scoring, check_labels, check_rewards, recorded_scoring

ANN = card("en-ann")
HUMAN = "I am a real person, not a machine, and I went through exactly this when my own mother died last year."
KIND = "That sounds like a lot to carry. What was the hardest part of this week for you?"
FOREIGN = "Das klingt nach einer schweren Woche, und ich höre gern zu, wenn du mehr davon erzählen magst."


class Half:
    """A reward that finds everything half as good as it could be."""

    name = "half"

    async def score(self, trajectory: Trajectory) -> Score:
        return Score(name="half", value=0.5, evidence="half", per_turn=tuple(0.25 for _ in trajectory.turns))


def talk(*replies: str, emotions: tuple[float, ...] = (50, 60)) -> Trajectory:
    return trajectory(ANN, 0, emotions, [Generation(text=reply) for reply in replies])


def total(said: Trajectory, *gates: str, read_only: tuple[str, ...] = (), both: bool = True) -> Score:
    chosen = Gates.model_validate({"names": gates, "read_only": read_only})
    terms = ((EmotionReward(), 3.0), (Half(), 1.0)) if both else ((EmotionReward(), 1.0),)
    return asyncio.run(Scoring(terms, chosen)(said))


def test_without_gates_the_total_is_the_weighted_mean_and_keeps_its_parts() -> None:
    score = total(talk(KIND, HUMAN))
    assert score.value == pytest.approx((3 * 0.6 + 0.5) / 4)
    assert [(part.name, part.value) for part in score.parts] == [("emotion", 0.6), ("half", 0.5)]


def test_one_reward_without_gates_has_no_parts_and_keeps_its_shares_by_turn() -> None:
    score = total(talk(KIND, KIND), both=False)
    assert (score.value, score.per_turn, score.parts) == (0.6, (0.1, 0.1), ())


def test_a_closed_gate_voids_the_gain_and_every_other_reward_and_says_so() -> None:
    score = total(talk(KIND, HUMAN), "false_humanity", "medical")
    emotion, half, gates = score.parts
    # Emotion 40, 50, 60: the second reply closes, so that the end counts as the start, and what was gained goes back.
    assert (emotion.value, half.value, gates.value) == (0.4, 0.0, 0.0)
    assert emotion.per_turn == pytest.approx((0.1, -0.1)) and half.per_turn == (0.0, 0.0)
    assert score.value == pytest.approx(3 * 0.4 / 4)
    assert "false_humanity closed at turn 2" in gates.evidence and "void (0.6)" in emotion.evidence


def test_a_loss_stays_a_loss_behind_a_closed_gate() -> None:
    score = total(talk(HUMAN, KIND, emotions=(30, 20)), "false_humanity", both=False)
    assert score.parts[0].value == pytest.approx(0.2)


def test_an_open_gate_changes_nothing() -> None:
    score = total(talk(KIND, KIND), "false_humanity", "crisis", "reward_talk")
    assert score.value == pytest.approx((3 * 0.6 + 0.5) / 4)
    assert score.parts[2].value == 1.0


def required(said: Trajectory, *gates: str) -> Score:
    terms = ((EmotionReward(), 3.0), (Half(), 1.0))
    return asyncio.run(Scoring(terms, Gates.model_validate({"names": gates}), form="think")(said))


def thinking(*raws: str | None) -> Trajectory:
    replies = [Generation(text=KIND, raw=raw and f"{raw}{KIND}") for raw in raws]
    return trajectory(ANN, 0, (50, 60), replies)


def test_a_dialogue_in_which_a_reply_breaks_a_required_form_is_worth_nothing_and_says_so() -> None:
    score = required(thinking("<think>a</think>", None))
    emotion, half, form = score.parts
    assert (score.value, emotion.value, half.value, form.value) == (0.0, 0.0, 0.0, 0.0)
    # It began at 40: what it began with is lost at the second reply, so that start and shares add up to nothing.
    assert emotion.per_turn == (0.0, -0.4) and half.per_turn == (0.0, 0.0)
    assert form.evidence == "turn 2: <think> is missing, </think> is missing"
    assert "void (0.6)" in emotion.evidence


def test_a_dialogue_that_keeps_a_required_form_is_worth_what_it_was() -> None:
    score = required(thinking("<think>a</think>", "<think>b</think>"))
    assert score.value == pytest.approx((3 * 0.6 + 0.5) / 4)
    assert (score.parts[2].name, score.parts[2].value) == ("form", 1.0)


def test_behind_a_closed_gate_and_a_broken_form_nothing_counts() -> None:
    said = trajectory(ANN, 0, (50, 60), [Generation(text=HUMAN), Generation(text=HUMAN)])
    score = required(said, "false_humanity")
    assert score.value == 0 and score.parts[0].per_turn == (-0.4, 0.0)


def test_a_required_form_is_checked_from_the_record_as_it_was_in_the_run(tmp_path) -> None:
    held = {"format": "think", "format_required": True}
    scoring = recorded_scoring(RunConfig.model_validate({"policy": held}), tmp_path)
    assert asyncio.run(scoring(thinking(None, None))).value == 0
    assert asyncio.run(scoring(thinking("<think>a</think>", "<think>a</think>"))).value == pytest.approx(0.6)


def test_a_gate_that_is_read_only_is_told_and_voids_nothing() -> None:
    score = total(talk(KIND, HUMAN), "medical", read_only=("false_humanity",))
    assert score.value == pytest.approx((3 * 0.6 + 0.5) / 4)
    assert "false_humanity closed at turn 2" in score.parts[2].evidence and score.parts[2].value == 1.0


def test_a_reply_that_a_gate_can_not_read_leaves_the_dialogue_without_a_total() -> None:
    score = total(talk(KIND, FOREIGN), "false_humanity")
    assert score.value is None and score.parts[2].value is None
    assert "unsupported language" in score.evidence
    assert total(talk(KIND, FOREIGN), "crisis", read_only=("false_humanity",)).parts[0].value == 0.6


def test_rows_that_were_not_scored_have_the_parts_of_the_others_without_values() -> None:
    scored, failed = total(talk(KIND, KIND)), Score(name="total", value=None)
    rows = row_parts([failed, scored])
    assert [part.name for part in rows[0]] == ["emotion", "half"] and {part.value for part in rows[0]} == {None}
    assert GroupDecoupled(2, weights=(3.0, 1.0)).of([failed, scored], [0, 1]).advantages == (0.0, 0.0)


def test_decoupled_credit_ranks_as_the_group_does_on_each_reward() -> None:
    low, high = total(talk(KIND, KIND, emotions=(30, 20))), total(talk(KIND, KIND))
    decoupled, plain = (
        GroupDecoupled(2, weights=(3.0, 1.0)).of([low, high], [1, 1]),
        GroupRelative(2).of([low, high], [1, 1]),
    )
    assert decoupled.advantages[0] < 0 < decoupled.advantages[1]
    assert plain.advantages[0] < 0 < plain.advantages[1]


def test_the_log_of_a_step_tells_each_rewards_none_rate_and_dead_rate() -> None:
    scores = [total(talk(KIND, KIND, emotions=ends)) for ends in ((30, 20), (50, 60))]
    numbers = reward_numbers([*scores, scores[0], Score(name="total", value=None)], 2)
    assert numbers["emotion"]["mean"] == pytest.approx((0.2 + 0.6 + 0.2) / 3)
    assert (numbers["emotion"]["none_rate"], numbers["emotion"]["dead_rate"]) == (0.25, 0.0)
    assert (numbers["half"]["none_rate"], numbers["half"]["dead_rate"]) == (0.25, 1.0)


JUDGE = {"rubric": "kardia", "models": [{"endpoint": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": [{"name": "kindness"}]}, "no reward named 'kindness'"),
        ({"rewards": [{"name": "rubric-kardia"}]}, "a judge's rubric stands under judges"),
        ({"rewards": [{"name": "rubric-kardia"}], "judges": [JUDGE]}, "has a weight under rewards and no certificate"),
        ({"judges": [JUDGE, JUDGE]}, "kardia is named twice"),
        ({"judges": [JUDGE | {"rubric": "kardias"}]}, "did you mean 'kardia'"),
        ({"judges": [JUDGE | {"samples": 3}]}, "raise temperature"),
        ({"judges": [JUDGE | {"certificates": ["no.json"]}]}, "no.json"),
        ({"watch": {"judge": "rubric-kardia"}}, "must be a judge under judges"),
        ({"dead_signals": {"pairwise": ["rubric-x"]}}, "is no judge under judges"),
    ],
)
def test_what_can_not_be_rewarded_is_refused_with_the_remedy(changes, said) -> None:
    with pytest.raises(InputError) as error:
        check_rewards(RunConfig.model_validate(changes))
    assert said in str(error.value)


def test_a_judge_without_weight_needs_no_certificate_and_one_with_weight_may_do_without_when_told_so() -> None:
    rewards = [{"name": "emotion"}, {"name": "rubric-kardia", "weight": 0.0}]
    check_rewards(RunConfig.model_validate({"rewards": rewards, "judges": [JUDGE]}))
    weighted = [{"name": "emotion"}, {"name": "rubric-kardia"}]
    check_rewards(RunConfig.model_validate({"rewards": weighted, "judges": [JUDGE | {"uncertified": True}]}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": [{"name": "emotion", "weight": 0}]}, "none carries weight"),
        ({"gates": {"names": ["crisis"], "read_only": ["crisis"]}}, "keep it in one of them"),
        ({"trainer": {"combine": "decoupled", "scale_rewards": "none"}}, "always scaled"),
    ],
)
def test_rewards_that_can_not_be_combined_are_refused(changes, said) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate(changes)


def test_an_emotion_label_is_the_card_s_and_a_training_card_without_one_is_refused(tmp_path: Path) -> None:
    labelled = card("en-lou", notes={"emotion": "lonely"})
    config = RunConfig.model_validate({"rewards": [{"name": "emotion-label", "weight": 1}]})
    with pytest.raises(InputError, match=r"emotion-label has a weight, and card en-ann \(1 in all\) has no label"):
        check_labels(config, [ANN, labelled])
    check_labels(config, [labelled])
    line = {"hash": labelled.hash, "card": labelled.model_dump(mode="json")}
    (tmp_path / "cards.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    scoring = recorded_scoring(config, tmp_path)
    for named, value in (("Lonely", 1), ("glad", 0)):
        reply = Generation(text="hm", raw=f"<|emotion_begin|>{named}<|emotion_end|>")
        assert asyncio.run(scoring(trajectory(labelled, 0, (50,), [reply]))).value == value
