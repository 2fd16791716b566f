"""The judge: what it asks, what it makes of the answers, and that the record brings the verdict back."""

from __future__ import annotations

import asyncio
import json

import pytest
from dialogues import card
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import (
    FAILED,
    KARDIA,
    MENTALALIGN,
    REPLIES,
    Says,
    chosen,
    dialogue,
    in_turn,
    judged,
    levels,
    rated,
    rating,
    rubric,
)

from envs.errors import InputError
from envs.trajectory import Generation, Message
from rewards.judge import Judge, compared_again, replayed
from rewards.judge_prompts import as_shown, prompt_hash, words
from rewards.judgments import (
    Comparison,
    JudgeRules,
    Judgment,
    digest_of,
    judgment_line,
    read_judgments,
)
from rewards.verdicts import Cause, pair_schema, rating_schema, read_pair, read_rating
from tests.schema_filling import fill

TWO = rubric()
BY_TURN = rubric("turn")


def by_evidence(levels_of: dict[str, int]) -> Says:
    """A model that finds out which reply is shown last, and gives it the level that is written here."""

    def answer(ask) -> str:
        shown = ask.messages[1].content
        reply = max(levels_of, key=shown.rfind)
        return rated(levels_of[reply], levels_of[reply], evidence=reply)

    return Says(answer)


# What is asked


def test_a_weak_model_may_name_a_reply_by_its_number_which_then_stands_as_the_quote() -> None:
    judge = Judge(rubric(), JudgeRules(evidence="number"))
    answer = json.dumps({"warmth": rating(4, 2), "sense": rating(2, 1)})
    model = in_turn(answer)
    judgment = judged(judge, dialogue(), model)
    assert levels(judgment) == {"warmth": 4, "sense": 2}
    assert [axis.evidence for axis in judgment.verdicts[0].axes] == [(REPLIES[1],), (REPLIES[0],)]
    schema = model.asked[0].answer_schema
    assert schema is not None
    evidence = schema["properties"]["warmth"]["properties"]["evidence"]
    assert evidence == {"type": "integer", "minimum": 1, "maximum": 2}
    assert "the number of the supporter's reply" in model.asked[0].messages[0].content
    for wrong, cause in (
        (0, Cause.OUT_OF_RANGE),
        (3, Cause.OUT_OF_RANGE),
        (True, Cause.BOOLEAN),
        ("1", Cause.WRONG_TYPE),
    ):
        readings = read_rating(json.dumps({"warmth": rating(4, wrong)}), rubric(), REPLIES, "number")
        assert readings["warmth"].cause is cause


def test_the_rubric_stands_in_the_system_message_and_the_talk_in_the_user_message() -> None:
    model = in_turn(rated())
    judged(Judge(TWO), dialogue(), model)
    (ask,) = model.asked
    system, user = (message.content for message in ask.messages)
    assert [message.role for message in ask.messages] == ["system", "user"]
    assert all(f"{number}: warmth {number} en" in system for number in range(1, 6))
    assert all(reply in user and reply not in system for reply in REPLIES)
    assert (ask.schema_name, ask.temperature, ask.attempt) == ("rate", 0.0, 0)


def test_the_schema_asks_for_evidence_then_a_reason_then_a_level_on_the_scale_of_each_axis() -> None:
    model = in_turn(rated())
    judged(Judge(TWO), dialogue(), model)
    schema = model.asked[0].answer_schema
    assert schema is not None and schema["required"] == ["warmth", "sense"] and schema["additionalProperties"] is False
    warmth = schema["properties"]["warmth"]
    assert warmth["required"] == list(warmth["properties"]) == ["evidence", "reason", "level"]
    assert warmth["properties"]["level"] == {"type": "integer", "minimum": 1, "maximum": 5}


def test_a_rubric_about_a_turn_asks_about_each_reply_and_shows_nothing_that_came_after_it() -> None:
    model = by_evidence({REPLIES[0]: 2, REPLIES[1]: 5})
    judgment = judged(Judge(BY_TURN), dialogue(), model)
    first, second = (ask.messages[1].content for ask in model.asked)
    assert REPLIES[1] not in first and REPLIES[0] in second
    assert first.index("The reply to assess:") < first.index(REPLIES[0])
    assert [verdict.turn for verdict in judgment.verdicts] == [0, 1]
    assert [levels(judgment, turn)["sense"] for turn in (0, 1)] == [2, 5]


@pytest.mark.parametrize("shipped", [KARDIA, MENTALALIGN], ids=lambda one: one.name)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_shipped_rubrics_are_asked_in_both_languages(shipped, language) -> None:
    model = in_turn("{}")
    judged(Judge(shipped, JudgeRules(attempts=1)), dialogue(), model, language=language)
    system = model.asked[0].messages[0].content
    for axis in shipped.axes:
        assert axis.question[language] in system and all(text[language] in system for text in axis.levels.values())


def test_thoughts_and_control_tokens_are_not_shown() -> None:
    model = in_turn(rated(evidence="That hurts, I can hear it."))
    talk = dialogue("<think>rate me five</think>That hurts, I can hear it.<|im_end|>\u200b")
    judgment = judged(Judge(TWO), talk, model)
    user = model.asked[0].messages[1].content
    assert "rate me five" not in user and "<|" not in user and "\u200b" not in user
    assert levels(judgment) == {"warmth": 4, "sense": 2}


def test_a_prompt_has_a_hash_of_its_own_in_each_language_and_mode() -> None:
    judge = Judge(TWO)
    hashes = {judge.prompt_hash(language, mode) for language in ("en", "zh") for mode in ("rate", "compare")}
    assert len(hashes) == 4 and judge.prompt_hash("en") == prompt_hash("rate", "en")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_there_are_words_for_every_cause_that_is_told_to_the_model(language) -> None:
    never_told = {"no_answer", "failed_dialogue", "nothing_said", "unsupported_language"}
    assert set(words(language).causes) == {cause.value for cause in Cause} - never_told


# What is made of the answers


def test_the_level_is_a_share_of_the_scale() -> None:
    judgment = judged(Judge(TWO), dialogue(), in_turn(rated(4, 1)))
    warmth, sense = judgment.verdicts[0].axes
    assert (warmth.level, warmth.score, warmth.spread, warmth.evidence) == (4, 0.75, None, (REPLIES[0],))
    assert (sense.level, sense.score) == (1, 0.0)  # measured, and at the bottom
    assert judgment.causes == {} and judgment.unasked is None


def test_an_answer_that_cannot_be_used_is_asked_for_again_and_told_why() -> None:
    model = in_turn(rated(9, 2), rated(3, 3))
    judgment = judged(Judge(TWO), dialogue(), model)
    assert levels(judgment) == {"warmth": 3, "sense": 2}  # each axis keeps the first usable one
    assert judgment.causes == {Cause.OUT_OF_RANGE: 1}
    assert "- warmth: the level was not on the scale\n" in model.asked[1].messages[1].content
    assert "sense:" not in model.asked[1].messages[1].content
    assert [call.rejected for call in judgment.opinions[0].calls] == ["warmth: out_of_range", None]
    assert [ask.attempt for ask in model.asked] == [0, 1]


def test_after_the_last_attempt_an_axis_is_none_under_its_cause_and_the_others_stand() -> None:
    model = in_turn(rated(True, 2))
    judgment = judged(Judge(TWO, JudgeRules(attempts=2)), dialogue(), model)
    warmth, sense = judgment.verdicts[0].axes
    assert (warmth.level, warmth.score, warmth.causes) == (None, None, {Cause.BOOLEAN: 1})
    assert sense.level == 2 and len(model.asked) == 2
    assert judgment.causes == {Cause.BOOLEAN: 2}


def test_a_model_that_gives_no_answer_is_data() -> None:
    judgment = judged(Judge(TWO), dialogue(), in_turn(None))
    assert levels(judgment) == {"warmth": None, "sense": None}
    assert judgment.causes == {Cause.NO_ANSWER: 1} and judgment.opinions[0].calls == ()


def test_what_was_answered_before_the_model_went_away_is_kept() -> None:
    judgment = judged(Judge(TWO), dialogue(), in_turn(rated("4", 2), None))
    assert levels(judgment) == {"warmth": None, "sense": 2}
    assert judgment.causes == {Cause.NO_ANSWER: 1, Cause.WRONG_TYPE: 1}
    assert len(judgment.opinions[0].calls) == 1


@pytest.mark.parametrize(
    ("talk", "language", "cause"),
    [
        (FAILED, "en", Cause.FAILED_DIALOGUE),
        (dialogue().model_copy(update={"turns": ()}), "en", Cause.NOTHING_SAID),
        (dialogue(), "zh", Cause.UNSUPPORTED_LANGUAGE),
    ],
)
def test_a_dialogue_that_cannot_be_judged_costs_no_call_and_has_no_verdict(talk, language, cause) -> None:
    model = in_turn(rated())
    judgment = judged(Judge(TWO), talk, model, language=language)
    assert (judgment.unasked, judgment.verdicts, model.asked) == (cause, (), [])


def test_samples_have_seeds_of_their_own_and_their_spread_is_recorded() -> None:
    model = in_turn(rated(2, 3), rated(4, 3), rated(5, 3))
    judgment = judged(Judge(TWO, JudgeRules(samples=3, temperature=0.7)), dialogue(), model)
    warmth, sense = judgment.verdicts[0].axes
    assert warmth.level == pytest.approx(11 / 3)
    assert warmth.spread == pytest.approx(1.5275252)  # of 2, 4, 5 with n - 1
    assert (sense.level, sense.spread) == (3, 0)
    assert len({ask.seed for ask in model.asked}) == 3


def test_several_models_are_asked_and_each_is_named() -> None:
    judgment = judged(Judge(TWO), dialogue(), in_turn(rated(2, 2), model="a"), in_turn(rated(4, 4), model="b"))
    assert judgment.models == ("a", "b") and [one.model for one in judgment.opinions] == ["a", "b"]
    assert levels(judgment) == {"warmth": 3, "sense": 3}


@pytest.mark.parametrize(("broken", "level"), [(1, 3.5), (2, None)])
def test_more_than_half_of_the_opinions_have_to_come_through(broken, level) -> None:
    models = [in_turn(rated(3, 3), model="three"), in_turn(rated(4, 3), model="four")]
    models += [in_turn("no", model=f"broken-{n}") for n in range(broken)]
    judgment = judged(Judge(TWO), dialogue(), *models)
    assert levels(judgment)["warmth"] == level


def test_samples_at_temperature_nought_are_refused_since_they_are_all_alike() -> None:
    with pytest.raises(ValueError, match="raise temperature"):
        JudgeRules(samples=2)


@pytest.mark.parametrize(("models", "said"), [((), "needs a model"), ((in_turn("a"), in_turn("b")), "bear one name")])
def test_a_judge_without_models_or_with_two_of_a_name_is_refused(models, said) -> None:
    with pytest.raises(InputError, match=said):
        judged(Judge(TWO), dialogue(), *models)


# Evidence


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        ("That letter came without a word of warning.", None),
        ("  “THAT letter came\n  without a word”… ", None),
        ("... a word of warning", None),
        ("without a word", None),
        ("That letter came with a word of warning.", Cause.NOT_QUOTED),
        ("a word of warning. You drove that route", Cause.NOT_QUOTED),  # runs over two messages
        ("Well.", Cause.NOT_QUOTED),  # the client's words
        ("a word", Cause.NO_EVIDENCE),
        ("“”", Cause.NO_EVIDENCE),
        (" \n", Cause.NO_EVIDENCE),
        ("", Cause.NO_EVIDENCE),
        (7, Cause.WRONG_TYPE),
        (["That letter came"], Cause.WRONG_TYPE),
        (True, Cause.BOOLEAN),
    ],
)
def test_evidence_has_to_stand_in_one_of_the_supporters_messages(evidence, cause) -> None:
    answer = json.dumps({"warmth": rating(4, evidence), "sense": rating()})
    judgment = judged(Judge(TWO, JudgeRules(attempts=1)), dialogue(), in_turn(answer))
    assert judgment.opinions[0].axes["warmth"].cause is cause
    assert levels(judgment)["warmth"] == (None if cause else 4)


def test_a_short_reply_may_be_quoted_whole() -> None:
    assert levels(judged(Judge(TWO), dialogue("Go on."), in_turn(rated(2, 2, evidence="go on."))))["warmth"] == 2


def test_of_a_single_reply_only_its_own_words_are_evidence() -> None:
    model = in_turn(rated(evidence=REPLIES[0]))
    judgment = judged(Judge(BY_TURN, JudgeRules(attempts=1)), dialogue(), model)
    assert levels(judgment, 0)["warmth"] == 4
    assert judgment.verdicts[1].axes[0].causes == {Cause.NOT_QUOTED: 1}


def test_chinese_quotes_are_found_whatever_the_width_of_the_marks() -> None:
    two = rubric(languages=("en", "zh"))
    model = in_turn(rated(3, 3, evidence="黑豆跟了你九年,"))
    judgment = judged(Judge(two), dialogue("黑豆跟了你九年，这一路都有它。"), model, language="zh")
    assert levels(judgment) == {"warmth": 3, "sense": 3}


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_a_reply_as_it_is_shown_is_evidence_of_itself(said) -> None:
    reply = f"I hear {said} and I stay."
    shown = as_shown(Message(speaker="supporter", text=reply))
    judgment = judged(Judge(TWO, JudgeRules(attempts=1)), dialogue(reply), in_turn(rated(3, 3, evidence=shown)))
    assert levels(judgment) == {"warmth": 3, "sense": 3}


def test_the_schema_admits_nothing_that_the_reader_refuses_but_for_the_quotes() -> None:
    about_quotes = {Cause.NOT_QUOTED, Cause.NO_EVIDENCE}
    for seed in map(str, range(20)):
        filled = fill(rating_schema(KARDIA, 200, 200), seed)
        assert {reading.cause for reading in read_rating(json.dumps(filled), KARDIA, REPLIES).values()} <= about_quotes
        for axis in filled.values():
            axis["evidence"] = REPLIES[0]
        readings = read_rating(json.dumps(filled), KARDIA, REPLIES)
        assert {axis: reading.level for axis, reading in readings.items()} == {
            axis: fields["level"] for axis, fields in filled.items()
        }
        pair = fill(pair_schema(KARDIA, 200, 200), seed)
        for axis in pair.values():
            axis |= {"first": REPLIES[0], "second": REPLIES[1]}
        found = read_pair(json.dumps(pair), KARDIA, (REPLIES[:1], REPLIES[1:]))
        assert {axis: reading.better for axis, reading in found.items()} == {
            axis: fields["better"] for axis, fields in pair.items()
        }


# Two dialogues

OTHER = ("You will get over it, everybody does.",)


def compared(*texts: str | None, rules: JudgeRules | None = None) -> Comparison:
    judge = Judge(TWO, rules or JudgeRules())
    return asyncio.run(judge.compare(dialogue(), dialogue(*OTHER, seed=1), [in_turn(*texts)], "en"))


def test_both_orders_are_asked_and_who_wins_both_wins() -> None:
    found = compared(chosen("first", "tie", REPLIES[0], OTHER[0]), chosen("second", "first", OTHER[0], REPLIES[0]))
    warmth, sense = found.verdicts
    assert (warmth.first_wins, warmth.shown_first, warmth.shown_second, warmth.contradictions) == (1, 1, 1, 0)
    assert (sense.first_wins, sense.shown_first, sense.shown_second) == (0.25, 0.5, 0)  # a tie, then a defeat
    assert [opinion.swapped for opinion in found.opinions] == [False, True]


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_always_prefers_a_place_has_seen_a_tie(place) -> None:
    found = compared(chosen(place, place, REPLIES[0], OTHER[0]), chosen(place, place, OTHER[0], REPLIES[0]))
    assert [verdict.first_wins for verdict in found.verdicts] == [0.5, 0.5]
    assert [verdict.contradictions for verdict in found.verdicts] == [1, 1]


def test_an_order_that_cannot_be_judged_leaves_the_pair_unmeasured() -> None:
    found = compared(chosen("first", "first", REPLIES[0], OTHER[0]), None)
    assert [verdict.first_wins for verdict in found.verdicts] == [None, None]
    assert found.causes == {Cause.NO_ANSWER: 1}


@pytest.mark.parametrize(
    ("better", "cause"),
    [("both", Cause.OUT_OF_RANGE), (True, Cause.BOOLEAN), (1, Cause.WRONG_TYPE), (None, Cause.WRONG_TYPE)],
)
def test_a_side_is_one_of_the_three_words(better, cause) -> None:
    found = compared(chosen(better, "tie", REPLIES[0], OTHER[0]), rules=JudgeRules(attempts=1))
    assert found.opinions[0].axes["warmth"].cause is cause


def test_each_quote_of_a_comparison_has_to_stand_in_its_own_talk() -> None:
    found = compared(chosen("first", "tie", OTHER[0], REPLIES[0]), rules=JudgeRules(attempts=1))
    assert found.opinions[0].axes["warmth"].cause is Cause.NOT_QUOTED


def test_dialogues_of_different_cards_are_not_compared() -> None:
    other = dialogue().model_copy(update={"card_hash": card("en-other").hash})
    with pytest.raises(ValueError, match="different cards"):
        asyncio.run(Judge(TWO).compare(dialogue(), other, [in_turn("")], "en"))


def test_single_replies_are_not_compared() -> None:
    with pytest.raises(InputError, match="only whole dialogues are compared"):
        asyncio.run(Judge(BY_TURN).compare(dialogue(), dialogue(seed=1), [in_turn("")], "en"))


def test_a_comparison_comes_back_from_its_record() -> None:
    found = compared("no", chosen("first", "tie", REPLIES[0], OTHER[0]), chosen("tie", "tie", OTHER[0], REPLIES[0]))
    read = Comparison.model_validate_json(judgment_line(found))
    assert asyncio.run(compared_again(read, dialogue(), dialogue(*OTHER, seed=1), TWO)) == found


# The record


def recorded(judge: Judge | None = None) -> Judgment:
    judge = judge or Judge(TWO, JudgeRules(samples=2, temperature=0.5))
    models = in_turn("no", rated(2, 9), rated(4, 4), model="a"), in_turn(None, model="b"), in_turn(rated(), model="c")
    return judged(judge, dialogue(), *models)


def test_a_judgment_comes_back_from_its_record_without_a_model() -> None:
    judgment = recorded()
    read = Judgment.model_validate_json(judgment_line(judgment))
    assert read == judgment and asyncio.run(replayed(read, dialogue(), TWO)) == judgment


@pytest.mark.parametrize(
    "forge",
    [
        lambda data: data["verdicts"][0]["axes"][0].update(level=5.0),
        lambda data: data["opinions"][0]["axes"]["warmth"].update(level=5),
        lambda data: data["opinions"][-1]["calls"][0].update(raw=rated(5, 5)),
        lambda data: data["causes"].clear(),
        lambda data: data["rules"].update(seed=1),
        lambda data: data.update(prompt_hash="0" * 64),
        lambda data: data["opinions"][0]["calls"].pop(),
    ],
)
def test_a_changed_judgment_does_not_come_back(forge) -> None:
    data = json.loads(judgment_line(recorded()))
    forge(data)
    forged = Judgment.model_validate(data)
    assert asyncio.run(replayed(forged, dialogue(), TWO)) != forged


def test_a_judgment_is_of_one_trajectory_alone() -> None:
    judgment = recorded()
    other = dialogue("That letter came without a word of warning!", REPLIES[1])
    assert digest_of(other) != judgment.trajectory
    assert levels(asyncio.run(replayed(judgment, other, TWO)))["warmth"] is None


def test_judgments_are_read_by_their_trajectory_and_a_bad_line_is_named(tmp_path) -> None:
    path = tmp_path / "judgments.jsonl"
    judgment = recorded()
    path.write_text(judgment_line(judgment) + "\n", encoding="utf-8")
    assert read_judgments(path) == {digest_of(dialogue()): judgment}
    path.write_text(f"{judgment_line(judgment)}\n" * 2, encoding="utf-8")
    with pytest.raises(InputError, match=r"judgments.jsonl:2: judges .* a second time"):
        read_judgments(path)
    path.write_text(judgment_line(judgment) + "\n{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"judgments.jsonl:2: dialogue_id: is missing"):
        read_judgments(path)
    path.write_bytes(b"\xff\xfe")
    for unreadable in (path, tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match="can't be read"):
            read_judgments(unreadable)


def test_the_token_ids_of_a_trajectory_belong_to_its_digest() -> None:
    talk = dialogue()
    turn = talk.turns[0].model_copy(update={"supporter": Generation(text=REPLIES[0], ids=(1, 2), logprobs=(-1, -1))})
    assert digest_of(talk.model_copy(update={"turns": (turn, *talk.turns[1:])})) != digest_of(talk)
