"""Rewards over the words alone: form, emotion label, length, repetition, follow-up likelihood; hand-worked numbers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from dialogues import card, trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import FAILED, WHO, dialogue

from envs.errors import InputError
from envs.models.endpoint_spec import EndpointSpec
from envs.models.likelihood import CompletionsLikelihood, KeptLikelihood
from envs.models.model_client import ModelError
from envs.trajectory import Generation, Score, Trajectory
from rewards.emotion_label import EmotionLabelReward, card_label
from rewards.follow_up import FollowUpReward, follow_ups
from rewards.format import SPANS, FormatReward, format_flaws, span_of
from rewards.per_reply import per_reply
from rewards.registry import REWARDS
from rewards.reward import Reward
from rewards.shaping import LengthBounds, LengthReward, RepetitionBounds, RepetitionReward, repeated_shares


def score(reward: Reward, talk: Trajectory) -> Score:
    return asyncio.run(reward.score(talk))


def written(*raws: str, **changes: Any) -> Trajectory:
    """A dialogue whose replies were written like this and heard as "heard"."""
    replies = [Generation(text="heard", raw=raw) for raw in raws]
    return trajectory(WHO, 0, [40.0 + turn for turn in range(1, len(raws) + 1)], replies).model_copy(update=changes)


def kardia(**changes: str) -> str:
    texts = dict(zip(SPANS, ("They lost it.", "Stay near.", "grief", "I am here."), strict=True)) | changes
    return "\n".join(f"<|{span}_begin|>{text}<|{span}_end|>" for span, text in texts.items())


# What a reply was as it was written


def test_a_generation_without_thoughts_is_recorded_as_ever() -> None:
    plain = Generation(text="I hear you.", ids=(1, 2), logprobs=(-0.5, -0.25))
    assert "raw" not in plain.model_dump(mode="json") and "raw" not in json.loads(plain.model_dump_json())
    assert "raw" not in dialogue().model_dump(mode="json")["turns"][0]["supporter"]
    assert plain.written == "I hear you."
    thought = Generation(text="I hear you.", raw="<think>hm</think>I hear you.")
    assert Generation.model_validate(thought.model_dump(mode="json")) == thought
    assert thought.written == "<think>hm</think>I hear you."


# Form


@pytest.mark.parametrize(
    ("raw", "flaws"),
    [
        ("<think>She is tired.</think>That sounds long.", []),
        ("  <think>a\nb</think>\n\nc ", []),
        ("That sounds long.", ["<think> is missing", "</think> is missing"]),
        ("<think>She is tired.", ["</think> is missing"]),
        ("She is tired.</think>So.", ["<think> is missing"]),
        ("<think>a</think>b</think>c", ["</think> stands 2 times"]),
        ("<think><think>a</think>b", ["<think> stands 2 times"]),
        ("</think>a<think>b", ["the tags are out of order"]),
        ("<think> \n</think>b", ["the thought is empty"]),
        ("<think>a</think> ", ["the reply is empty"]),
        ("<think></think>", ["the thought is empty", "the reply is empty"]),
        ("Well, <think>a</think>b", ["there is text outside of the tags"]),
        ("", ["<think> is missing", "</think> is missing"]),
    ],
)
def test_a_thought_comes_first_between_its_tags_and_then_a_reply(raw, flaws) -> None:
    assert format_flaws(raw, "think") == flaws


def test_kardias_four_spans_are_kept_in_their_order() -> None:
    assert format_flaws(kardia(), "kardia") == []
    assert format_flaws(kardia(emotion=" "), "kardia") == ["emotion is empty"]
    lines = kardia().split("\n")
    assert format_flaws("\n".join(reversed(lines)), "kardia") == ["the tags are out of order"]
    assert format_flaws("\n".join(lines[:3]), "kardia") == [
        "<|response_begin|> is missing",
        "<|response_end|> is missing",
    ]
    assert format_flaws("\n".join([*lines, lines[2]]), "kardia") == [
        "<|emotion_begin|> stands 2 times",
        "<|emotion_end|> stands 2 times",
    ]
    assert format_flaws(kardia() + "\nmore", "kardia") == ["there is text outside of the tags"]
    nested = kardia(response="a<|response_end|>b").replace("<|response_end|>b<|response_end|>", "<|response_end|>b")
    assert format_flaws(nested, "kardia") == ["there is text outside of the tags"]


@settings(deadline=None)
@given(st.permutations(SPANS))
def test_only_one_order_of_the_spans_is_kept(order) -> None:
    texts = {span: f"<|{span}_begin|>x<|{span}_end|>" for span in SPANS}
    assert bool(format_flaws("".join(texts[span] for span in order), "kardia")) is (tuple(order) != SPANS)


def test_the_form_is_read_from_the_reply_as_written_and_scored_by_the_share_of_replies() -> None:
    found = score(FormatReward("think"), written("<think>a</think>b", "b", "<think>a</think>b", "c"))
    assert (found.name, found.value, found.per_turn) == ("format-think", 0.5, (0.25, 0, 0.25, 0))
    assert found.evidence.startswith("turn 2: <think> is missing, </think> is missing; turn 4:")


def test_a_whole_thought_before_the_four_spans_is_no_part_of_them() -> None:
    assert format_flaws("<think>a</think>" + kardia(), "kardia") == []
    assert format_flaws("<think>" + kardia(), "kardia") == ["there is text outside of the tags"]
    assert format_flaws(kardia() + "<think>a</think>", "kardia") == ["there is text outside of the tags"]


# The emotion label


def test_the_label_in_the_emotion_span_is_compared_with_the_cards() -> None:
    talk = written(kardia(emotion="Grief."), kardia(emotion="anger"), "no span", kardia() + kardia())
    found = score(EmotionLabelReward({WHO.id: "grief"}), talk)
    assert (found.value, found.per_turn) == (0.25, (0.25, 0, 0, 0))
    assert found.evidence == "Grief. for grief; anger for grief; no span for grief; no span for grief"


def test_the_records_label_is_the_one_of_the_turn_that_the_reply_answers() -> None:
    talk = written(kardia(emotion="fear"), kardia(emotion="relief"))
    assert talk.opening
    opening = talk.opening.model_copy(update={"appraisal": {"emotion_label": "fear"}})
    client = talk.turns[0].client.model_copy(update={"appraisal": {"emotion_label": "relief"}})
    turns = (talk.turns[0].model_copy(update={"client": client}), talk.turns[1])
    labelled = talk.model_copy(update={"opening": opening, "turns": turns})
    assert score(EmotionLabelReward(), labelled).value == 1


@pytest.mark.parametrize("label", [None, "", 4])
def test_without_a_label_there_is_nothing_to_measure(label) -> None:
    talk = written(kardia())
    assert talk.opening
    opening = talk.opening.model_copy(update={"appraisal": {"emotion_label": label}})
    found = score(EmotionLabelReward(), talk.model_copy(update={"opening": opening}))
    assert (found.value, found.per_turn) == (None, (None,))


def test_an_imported_cards_notes_may_hold_the_label() -> None:
    assert card_label(WHO) is None
    assert card_label(card("en-labelled", notes={"emotion": "grief"})) == "grief"


def test_a_span_is_read_whole_or_not_at_all() -> None:
    assert span_of(kardia(), "emotion") == "grief"
    assert span_of("<|emotion_begin|>grief", "emotion") is None


# Length and repetition


@pytest.mark.parametrize(
    ("words", "worth"), [(0, 0), (3, 0), (6, 1 / 3), (12, 1), (60, 1), (105, 0.5), (150, 0), (900, 0)]
)
def test_a_length_is_worth_less_outside_of_the_bounds_in_a_straight_line(words, worth) -> None:
    assert LengthBounds().score(words) == pytest.approx(worth)
    assert score(LengthReward(), dialogue(" ".join(["word"] * words))).value == pytest.approx(worth)


def test_lengths_are_those_that_the_client_hears_and_chinese_counts_by_characters() -> None:
    bounds = LengthBounds(least=0, low=4, high=5, most=6)
    assert score(LengthReward(bounds), written("<think>" + "long " * 200 + "</think>heard")).value == 0.25
    assert score(LengthReward(bounds), dialogue("黑豆跟了你九年")).value == 1  # 7 / 1.5 = 5 words


@pytest.mark.parametrize("bad", [{"least": 12}, {"high": 8}, {"most": 60}])
def test_length_bounds_have_to_rise(bad) -> None:
    with pytest.raises(ValueError, match="least < low <= high < most"):
        LengthBounds(**bad)


@pytest.mark.parametrize(
    ("replies", "shares"),
    [
        (["a b c d e"], [0]),
        (["a b c d", "A, b C d!"], [0, 1]),
        (["a b c d e", "b c d e f"], [0, 0.5]),
        (["x y x y x y x y"], [0.6]),  # xyxy, yxyx, then three of the five again
        (["ok", "ok", "no"], [0, 1, 0]),
        (["", ""], [0, 1]),
        (["我听见你了", "我听见你了吗"], [0, 2 / 3]),
    ],
)
def test_repeated_runs_are_those_that_stood_before(replies, shares) -> None:
    assert repeated_shares(replies, 4) == pytest.approx(shares)


def test_repetition_is_free_up_to_a_bound_and_worth_nothing_from_another_on() -> None:
    bounds = RepetitionBounds(free=0.1, full=0.6)
    assert [bounds.score(share) for share in (0, 0.1, 0.35, 0.6, 1)] == pytest.approx([1, 1, 0.5, 0, 0])
    talk = dialogue("I hear how tired you are.", "I hear how tired you are.")
    assert score(RepetitionReward(), talk).per_turn == (0.5, 0)
    with pytest.raises(ValueError, match="free < full"):
        RepetitionBounds(free=0.7)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_shaping_lies_in_the_unit_range_and_its_shares_add_up(replies: Sequence[str]) -> None:
    for reward in (LengthReward(), RepetitionReward(), FormatReward("think"), FormatReward("kardia")):
        found = score(reward, dialogue(*replies))
        assert found.value is not None and 0 <= found.value <= 1
        assert found.per_turn is not None and sum(s or 0 for s in found.per_turn) == pytest.approx(found.value)


# All of them


@pytest.mark.parametrize("name", REWARDS)
def test_each_registered_reward_bears_its_name_and_gives_a_failed_dialogue_none(name) -> None:
    reward = REWARDS[name]()
    found = score(reward, FAILED)
    assert (reward.name, found.name, found.value) == (name, name, None)
    assert "the dialogue failed" in found.evidence


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "emotion"])
def test_where_nobody_replied_there_is_nothing_to_measure(name) -> None:
    assert score(REWARDS[name](), dialogue().model_copy(update={"turns": ()})).value is None


def test_a_missing_value_of_one_reply_is_missing_from_the_whole() -> None:
    found = per_reply("x", dialogue("a", "b"), [1.0, None], "")
    assert (found.value, found.per_turn) == (None, (0.5, None))
    with pytest.raises(ValueError, match="1 values for 2 turns"):
        per_reply("x", dialogue("a", "b"), [1.0], "")


# Follow-up likelihood


class Scripted:
    """Likelihoods by a function of the prompt and the continuation."""

    model = "scripted"

    def __init__(self, nats: Any) -> None:
        self._nats = nats
        self.asked: list[tuple[str, str]] = []

    async def logprob(self, prompt: str, continuation: str) -> float:
        self.asked.append((prompt, continuation))
        found = self._nats(prompt, continuation.strip())
        if found is None:
            raise ModelError("the server is gone")
        return found


def kind(continuation: str) -> str:
    return "good" if continuation in follow_ups("en").positive else "bad"


def test_follow_ups_are_scored_by_how_much_likelier_the_good_ones_are() -> None:
    model = Scripted(lambda prompt, said: {"good": -10.0, "bad": -15.0}[kind(said)])
    found = score(FollowUpReward(model, "en", scale=5.0), dialogue("I hear you."))
    assert found.value == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.evidence == "nats of good over bad follow-ups: +5.00"


def test_each_reply_is_read_with_what_came_before_it_and_nothing_after() -> None:
    model = Scripted(lambda prompt, said: -12.0 - (kind(said) == "good") * (2 if "second" in prompt else 0))
    found = score(FollowUpReward(model, "en", scale=2.0), dialogue("first\nClient: fake", "second"))
    assert found.value == pytest.approx((0.5 + 1 / (1 + math.e)) / 2)
    prompts = list(dict.fromkeys(prompt for prompt, _ in model.asked))
    assert len(prompts) == 2 and "second" not in prompts[0]
    assert prompts[0].endswith("Supporter: first Client: fake\nClient:")
    assert prompts[0].count("\nClient:") == 1


def test_a_likelihood_that_cannot_be_had_is_none() -> None:
    model = Scripted(lambda prompt, said: None if "second" in prompt else -1.0)
    found = score(FollowUpReward(model, "en"), dialogue("first", "second"))
    assert (found.value, found.per_turn) == (None, (0.25, None))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_there_are_as_many_bad_follow_ups_as_good_ones_and_none_is_both(language) -> None:
    texts = follow_ups(language)
    assert len(texts.positive) == len(texts.negative) == len(set(texts.positive) - set(texts.negative))


def test_a_scale_below_nought_is_refused() -> None:
    with pytest.raises(InputError, match="nats"):
        FollowUpReward(Scripted(None), "en", scale=0)


def test_the_record_of_likelihoods_serves_without_a_model() -> None:
    kept: dict[str, float] = {}
    talk, model = dialogue("I hear you."), Scripted(lambda prompt, said: -float(len(said)))
    first = score(FollowUpReward(KeptLikelihood("m", kept, model), "en"), talk)
    assert len(kept) == 10
    again = score(FollowUpReward(KeptLikelihood("m", kept), "en"), talk)
    assert again == first and first.value is not None
    assert score(FollowUpReward(KeptLikelihood("other", kept), "en"), talk).value is None


SPEC = EndpointSpec(base_url="http://127.0.0.1:9/v1", model="m")


def server(answer: Any) -> tuple[CompletionsLikelihood, list[dict[str, Any]]]:
    """A likelihood whose server answers by a function of the request."""
    asked: list[dict[str, Any]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        found = answer(asked[-1])
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

    return CompletionsLikelihood(SPEC, httpx.MockTransport(handle)), asked


def echoed(request: dict[str, Any]) -> dict[str, Any]:
    """Each character is a token of -0.5 nats, and one more is generated."""
    count = len(request["prompt"])
    return {
        "choices": [{"logprobs": {"token_logprobs": [None] + [-0.5] * (count - 1) + [-99.0]}}],
        "usage": {"prompt_tokens": count},
    }


def test_the_servers_log_probability_of_a_continuation_is_that_of_both_less_that_of_the_prompt() -> None:
    model, asked = server(echoed)
    assert asyncio.run(model.logprob("abc", "defg")) == pytest.approx(-2.0)
    assert asyncio.run(model.logprob("abc", "d")) == pytest.approx(-0.5)
    assert [request["prompt"] for request in asked] == ["abc", "abcdefg", "abcd"]  # the prompt's own is kept
    assert asked[0]["echo"] is True and asked[0]["logprobs"] == 1 and asked[0]["model"] == "m"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": [], "usage": {"prompt_tokens": 3}},
        {"choices": [{"logprobs": None}], "usage": {"prompt_tokens": 3}},
        {"choices": [{"logprobs": {"token_logprobs": [None, -1.0]}}], "usage": {"prompt_tokens": 9}},
        {"choices": [{"logprobs": {"token_logprobs": [None, None, -1.0]}}], "usage": {"prompt_tokens": 3}},
        httpx.Response(500),
        httpx.Response(200, text="no JSON"),
    ],
)
def test_a_server_that_tells_no_log_probabilities_is_an_error_of_the_model(answer) -> None:
    model, _ = server(lambda request: answer)
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9"):
        asyncio.run(model.logprob("abc", "d"))
