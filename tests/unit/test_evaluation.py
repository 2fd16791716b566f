"""Evaluation: summaries and paired differences as pure functions of trajectories."""

from __future__ import annotations

import asyncio

import pytest

from envs.client_spec import load_spec
from envs.errors import InputError
from envs.hashing import derived_seed
from envs.receipts import ReceiptError
from envs.supporters import FixedReplies, GoodSupporter
from envs.trajectory import Stop
from tests.unit.dialogues import card, trajectory
from trainers.evaluation import (
    TRAJECTORIES,
    Comparison,
    DialogueKey,
    Evaluation,
    EvaluationSettings,
    compare,
    evaluate,
    play,
    read_trajectories,
    settings_for,
    summarise,
)
from trainers.statistics import Resampling

ANN = card("en-ann", hidden_need="listening", temperament="negative")
BEN = card("en-ben", hidden_need="real_advice", temperament="negative")
SETTINGS = EvaluationSettings(seeds=(0, 1), success_at=100, failure_below=10, resampling=Resampling(resamples=200))
SHORT = SETTINGS.model_copy(update={"seeds": (0,)})
OTHER_RULES = {"spec_hash": "1" * 64}


def four() -> list:
    return [
        trajectory(ANN, 0, [50, 60]),
        trajectory(ANN, 1, [100], stop=Stop.SUCCESS),
        trajectory(BEN, 0, [20, 5], stop=Stop.FAILURE),
        trajectory(BEN, 1, [30, 30, 35], stop=Stop.GOODBYE),
    ]


def test_a_summary_holds_the_numbers_worked_out_by_hand():
    found = summarise(four(), [ANN, BEN], SETTINGS)
    assert found.mean_final_emotion.mean == (60 + 100 + 5 + 35) / 4
    assert found.success_rate.mean == found.failure_rate.mean == 0.25
    assert found.turns.mean == 2.0
    assert found.stops == {Stop.SUCCESS: 1, Stop.FAILURE: 1, Stop.GOODBYE: 1, Stop.TURN_LIMIT: 1}
    assert {need: estimate.mean for need, estimate in found.by_need.items()} == {"listening": 80, "real_advice": 20}
    assert found.by_temperament["negative"].ci95 == (20.0, 80.0)
    assert (found.cards, found.dialogues, found.errors) == (2, 4, 0)


def test_a_failed_dialogue_is_counted_and_left_out_of_every_mean():
    rows = [trajectory(ANN, 0, [50, 60]), trajectory(ANN, 1, [90], stop=Stop.ERROR)]
    found = summarise(rows, [ANN], SETTINGS)
    assert found.errors == 1
    for estimate in (found.mean_final_emotion, found.success_rate, found.failure_rate, found.turns):
        assert (estimate.n, estimate.missing) == (1, 1)
    assert found.mean_final_emotion.mean == 60
    assert found.outcomes[1].final_emotion is None
    assert found.outcomes[1].error == "RunError: the server is gone"


def test_a_summary_is_the_same_for_any_order_and_survives_json():
    found = summarise(four(), [ANN, BEN], SETTINGS)
    assert summarise(four()[::-1], [BEN, ANN], SETTINGS) == found
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_the_record_names_every_seed_and_what_was_drawn_from_it():
    found = summarise(four(), [ANN, BEN], SETTINGS)
    assert found.settings.seeds == (0, 1)
    assert [(o.card_id, o.seed) for o in found.outcomes] == [("en-ann", 0), ("en-ann", 1), ("en-ben", 0), ("en-ben", 1)]
    assert found.outcomes[3].dialogue_seed == derived_seed("evaluation", "en-ben", 1)


def test_a_comparison_pairs_by_card_and_seed():
    base = [trajectory(ANN, 0, [10]), trajectory(ANN, 1, [20]), trajectory(BEN, 0, [30]), trajectory(BEN, 1, [5])]
    found = compare(base, four()[::-1], [ANN, BEN], SETTINGS)
    # Ann: 60 - 10 and 100 - 20; Ben: 5 - 30 and 35 - 5.
    assert found.mean_final_emotion.mean == pytest.approx((65 + 2.5) / 2)
    assert found.mean_final_emotion.ci95 == (2.5, 65.0)
    assert found.success_rate.mean == 0.25
    assert found.failure_rate.mean == 0.0
    assert found.by_need["real_advice"].mean == 2.5
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_a_pair_with_a_failed_side_is_missing():
    base = [trajectory(ANN, 0, [10]), trajectory(BEN, 0, [10])]
    tuned = [trajectory(ANN, 0, [30]), trajectory(BEN, 0, [90], stop=Stop.ERROR)]
    found = compare(base, tuned, [ANN, BEN], SHORT)
    assert found.mean_final_emotion.mean == 20
    assert (found.mean_final_emotion.n, found.mean_final_emotion.missing) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([trajectory(ANN, 7, [50])], "comes from none of"),
        ([trajectory(ANN, 0, [50])] * 2, "played twice"),
        ([trajectory(card("en-eve"), 0, [50])], "not among the cards"),
        ([trajectory(card("en-ann", hidden_need="sincere_praise"), 0, [50])], "not as it was"),
        ([trajectory(ANN, 0, [50]), trajectory(BEN, 0, [50]).model_copy(update=OTHER_RULES)], "different client"),
        ([], "at least one dialogue"),
    ],
)
def test_a_record_that_does_not_fit_its_evaluation_is_refused(rows, says):
    with pytest.raises(InputError, match=says):
        summarise(rows, [ANN, BEN], SETTINGS)


def test_a_comparison_of_other_pairs_or_other_specs_is_refused():
    with pytest.raises(InputError, match="en-ben with seed 0 was not played by tuned"):
        compare([trajectory(ANN, 0, [50]), trajectory(BEN, 0, [50])], [trajectory(ANN, 0, [50])], [ANN, BEN], SHORT)
    other = trajectory(ANN, 0, [50]).model_copy(update=OTHER_RULES)
    with pytest.raises(InputError, match="different client specs"):
        compare([trajectory(ANN, 0, [50])], [other], [ANN], SHORT)


def test_every_supporter_meets_the_same_clients():
    spec = load_spec("appraisal-v1")
    warm = asyncio.run(play(lambda key: FixedReplies(["I see."]), [ANN, BEN], spec, (0, 1)))
    good = asyncio.run(play(lambda key: GoodSupporter(key.language, key.dialogue_seed), [ANN, BEN], spec, (0, 1)))
    assert [(t.dialogue_id, t.seed) for t in warm] == [(t.dialogue_id, t.seed) for t in good]
    assert len({t.seed for t in warm}) == 4
    assert [t.card_id for t in warm] == ["en-ann", "en-ann", "en-ben", "en-ben"]


def test_each_dialogue_gets_a_supporter_of_its_own_that_knows_only_its_key():
    keys: list[DialogueKey] = []

    def factory(key: DialogueKey) -> FixedReplies:
        keys.append(key)
        return FixedReplies(["I see."])

    asyncio.run(play(factory, [ANN], load_spec("appraisal-v1"), (0, 3)))
    assert [(key.card_id, key.language, key.seed) for key in keys] == [("en-ann", "en", 0), ("en-ann", "en", 3)]


def test_an_evaluation_can_be_recomputed_from_its_folder(tmp_path):
    spec = load_spec("appraisal-v1")
    settings = settings_for(spec, seeds=2, resampling=Resampling(resamples=200))
    found = asyncio.run(evaluate(lambda key: FixedReplies(["I see."]), [ANN, BEN], spec, settings, tmp_path / "base"))
    again = summarise(read_trajectories(tmp_path / "base"), [ANN, BEN], settings)
    written = Evaluation.model_validate_json((tmp_path / "base" / "evaluation.json").read_text(encoding="utf-8"))
    assert found == again == written
    assert found.spec_hash == spec.hash


def test_a_folder_that_holds_an_evaluation_is_not_written_to_again(tmp_path):
    spec = load_spec("appraisal-v1")
    settings = settings_for(spec, seeds=1)
    asyncio.run(evaluate(lambda key: FixedReplies(["I see."]), [ANN], spec, settings, tmp_path))
    before = (tmp_path / TRAJECTORIES).read_bytes()
    with pytest.raises(InputError, match="an evaluation lies here already"):
        asyncio.run(evaluate(lambda key: FixedReplies(["Oh."]), [ANN], spec, settings, tmp_path))
    assert (tmp_path / TRAJECTORIES).read_bytes() == before


def test_a_changed_digit_in_the_log_is_named_by_its_line(tmp_path):
    spec = load_spec("appraisal-v1")
    asyncio.run(evaluate(lambda key: FixedReplies(["I see."]), [ANN, BEN], spec, settings_for(spec, seeds=1), tmp_path))
    path = tmp_path / TRAJECTORIES
    first, second = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(first + second.replace('"emotion":', '"emotion":1', 1), encoding="utf-8")
    with pytest.raises(ReceiptError, match=f"{TRAJECTORIES}:2"):
        read_trajectories(tmp_path)
