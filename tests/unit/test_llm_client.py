"""The client that a language model plays: what each call is told, what comes of the answers, and what is kept."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import ATTUNE, CARDS, AnsweringModel, Says, appraised, both, opened, scripted, spec_with, spoken, talk

from envs.card_set import load_cards
from envs.cards import CARDS_DIR, PersonaCard
from envs.client_spec import ClientSpec, load_spec
from envs.clients import make_client
from envs.clients.calls import Call, ClientModels
from envs.clients.client import ClientFailure
from envs.clients.llm import LlmClient
from envs.clients.prompts import need_text, persona_text, words
from envs.clients.retest import Retest, retest_agreement, retests_of
from envs.errors import InputError
from envs.hashing import canonical
from envs.models.fence import nonce
from envs.models.model_client import Answer, Ask, ModelError
from envs.receipts import check_emotions
from envs.trajectory import ClientTurn, Message, Stop, Trajectory
from trainers.language import GARBLED, measure_language
from trainers.replay import check_dialogue
from trainers.statistics import Resampling

EN = CARDS["en"]
NAMES = ("sage-v1", "rlver-challenging-v1", "rlver-vanilla-v1", "attune-v1")


def texts(ask: Ask) -> str:
    """The whole prompt, without the name of its fences."""
    return re.sub(r"said-[0-9a-f]{12}", "said", "\n".join(message.content for message in ask.messages))


def turns_of(*answers: str, spec: ClientSpec = ATTUNE, card: PersonaCard = EN, reply: str = "I see.") -> Any:
    """One turn with a client whose model gives ``answers``: (turn, what was asked)."""
    model, models = scripted(*answers)
    client = make_client(card, spec, 5, models)

    async def play() -> ClientTurn:
        opening = await client.open()
        said = Message(speaker="client", text=opening.text), Message(speaker="supporter", text=reply)
        return await client.reply(said)

    return asyncio.run(play()), model.asked


# What the calls are told


def test_the_appraising_call_gets_the_person_the_need_the_number_and_the_whole_talk() -> None:
    model = AnsweringModel(lambda turn: 10)
    talk(spec_with(max_turns=2), both(model), Says("First reply.", "Second reply."))
    first, _, second, _ = [texts(ask) for ask in model.asked]
    assert "Cape Road roundabout" in first and need_text(EN) in first
    assert "Your emotion before the reply: 33\n" in first and "Your emotion before the reply: 43\n" in second
    assert EN.opening and EN.opening in second and "First reply." in second and "Second reply." in second
    assert model.asked[0].answer_schema and model.asked[0].temperature == 0
    assert model.asked[0].answer_schema["properties"]["change"] == {"type": "integer", "minimum": -10, "maximum": 10}


def test_the_speaking_call_gets_the_band_the_thoughts_and_the_last_two_messages_apart() -> None:
    model = AnsweringModel(lambda turn: 10)
    talk(spec_with(max_turns=2), both(model), Says("First reply.", "Second reply."))
    prompt = texts(model.asked[3])
    assert "How you are now: B. You are calm enough to talk" in prompt
    assert "They took it up.\nIt fits.\nMaybe they hear me.\nA bit lighter." in prompt
    before, last = prompt.split("The last two messages:")
    assert EN.opening and EN.opening in before and "First reply." in before and "Well, part x of it." not in before
    assert "Well, part x of it." in last and "Second reply." in last and "First reply." not in last


TOLD = "I went from 33 to 43 (+10), forty-three, three and thirty."


def test_the_emotion_reaches_the_speaking_call_as_a_band_and_never_as_a_number() -> None:
    numbered = appraised(10, said=TOLD, fit=TOLD, inner="４３！", feeling="43.0 / 100")
    _, (appraise, reply) = turns_of(numbered, spoken())
    assert "33" in texts(appraise)
    assert not re.search(r"33|43|10\b|forty-three|４３", texts(reply))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.integers(-10, 10))
def test_no_thought_brings_a_digit_into_the_speaking_call(thought: str, change: int) -> None:
    emotion = 33 + change
    _, (_, plain) = turns_of(appraised(change), spoken())
    _, (_, told) = turns_of(appraised(change, inner=f"{thought}{emotion}{thought}"), spoken())
    digits = [sum(c.isdigit() for c in texts(ask)) for ask in (plain, told)]
    assert digits[0] == digits[1]


def test_every_card_of_the_collection_can_be_told_in_both_calls() -> None:
    cards = load_cards([CARDS_DIR])
    assert len(cards) > 100
    for card in cards:
        told = persona_text(card)
        assert card.script.facts[-1].say in told and card.speech and card.speech in told
        assert need_text(card) not in told
        LlmClient(card, ATTUNE, 0, both(AnsweringModel()))


def free(**changes: Any) -> PersonaCard:
    """A card in free text, as other collections have them."""
    given = {
        "id": "zh-free",
        "language": "zh",
        "split": "test",
        "source": "written for this test",
        "licence": "CC0",
        "profile": "姓名：林小满。二十九岁，图书馆员。",
        "situation": "上周她把一批旧书误登成遗失。",
        "need": "你想弄清同事为什么不提醒你",
        "opening": "书的事，还是放不下。",
        "start_emotion": 40,
    }
    return PersonaCard.model_validate(given | changes)


def test_a_card_in_free_text_is_told_with_its_own_need() -> None:
    _, (appraise, reply) = turns_of(appraised(2), spoken("嗯，我再想想。"), card=free(), reply="听起来你有些委屈。")
    for ask in (appraise, reply):
        assert (
            "姓名：林小满" in texts(ask) and "误登成遗失" in texts(ask) and "你想弄清同事为什么不提醒你" in texts(ask)
        )
    assert "回复之前你的情绪：40" in texts(appraise)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"need": None}, "card zh-free has no hidden_need and no need"),
        ({"start_emotion": None}, "card zh-free has no start_emotion"),
        ({"opening": None}, "card zh-free has no opening, which attune-v1 begins with"),
    ],
)
def test_a_card_that_lacks_what_the_client_needs_is_refused_with_the_remedy(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LlmClient(free(**changes), ATTUNE, 0, both(AnsweringModel()))


def test_a_spec_may_bring_what_the_card_lacks() -> None:
    client = LlmClient(free(start_emotion=None, opening=None), load_spec("rlver-vanilla-v1"), 0, both(AnsweringModel()))
    opening = asyncio.run(client.open())
    assert (opening.text, opening.emotion) == (json.loads(opened())["message"], 30)


def test_a_prompt_that_is_not_there_is_named() -> None:
    spec = spec_with(llm={"prompts": {"open": "open", "appraise": "gone", "reply": "reply"}})
    with pytest.raises(InputError, match=r"gone\.en\.jinja: there is no such file"):
        turns_of(appraised(), spoken(), spec=spec)


def test_the_hidden_intention_is_told_to_the_speaking_call_as_the_spec_says() -> None:
    told = {}
    for rule in ("hint", "never", "may_reveal"):
        fit = appraised(2, fit="It meets what I keep to myself.")
        _, (appraise, reply) = turns_of(fit, spoken(), spec=spec_with(llm={"hidden_intention": rule}))
        assert need_text(EN) in texts(appraise)
        told[rule] = (need_text(EN) in texts(reply), "what I keep to myself" in texts(reply))
        told[rule] += ("Never say it outright" in texts(reply), "You may say a little of it" in texts(reply))
    assert told == {
        "hint": (True, True, True, False),
        "never": (False, False, False, False),
        "may_reveal": (True, True, False, True),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("card", [*CARDS.values()], ids=["en", "zh"])
def test_the_policy_never_sees_the_need_or_the_number(name: str, card: PersonaCard) -> None:
    supporter = Says("I see.", "And then?")
    trajectory = talk(load_spec(name), both(AnsweringModel()), supporter, card)
    assert trajectory.stop is Stop.TURN_LIMIT and len(supporter.saw) == load_spec(name).max_turns
    seen = "\n".join(message.text for messages in supporter.saw for message in messages)
    assert need_text(card) not in seen
    assert not {f"{emotion:g}" for emotion in trajectory.emotions} & set(re.findall(r"\d+", seen))


def test_both_languages_have_words_for_every_need_temperament_and_band() -> None:
    for language in ("en", "zh"):
        said = words(language)
        assert (len(said.needs), len(said.temperaments), len(said.bands)) == (8, 3, 5)


# Answers that can't be used


def test_a_bad_answer_is_asked_again_with_the_cause_and_another_attempt() -> None:
    turn, asked = turns_of("no JSON", appraised(12), appraised(4), spoken())
    assert [(ask.schema_name, ask.attempt) for ask in asked] == [
        ("appraise", 0),
        ("appraise", 1),
        ("appraise", 2),
        ("reply", 0),
    ]
    assert len({ask.seed for ask in asked[:3]}) == 1 and len({ask.prompt_hash for ask in asked}) == 4
    assert "could not be used" not in texts(asked[0])
    assert "could not be used: the answer was not one JSON object and nothing else." in texts(asked[1])
    assert "could not be used: change did not lie between -10 and 10." in texts(asked[2])
    assert (turn.change, [call["rejected"] for call in turn.appraisal["calls"]]) == (
        4,
        [
            "the answer was not one JSON object and nothing else",
            "change did not lie between -10 and 10",
            None,
            None,
        ],
    )


def test_a_client_without_a_usable_answer_ends_the_dialogue_by_error_and_not_by_a_low_score() -> None:
    _, models = scripted(appraised(-5), spoken(), *["nothing"] * 3)
    trajectory = talk(ATTUNE, models)
    assert trajectory.stop is Stop.ERROR and trajectory.final_emotion is None
    assert trajectory.error == (
        "ClientFailure: the client's model scripted gave 3 answers to 'appraise' that can't be used; the last because "
        "the answer was not one JSON object and nothing else"
    )
    assert [turn.client.emotion for turn in trajectory.turns] == [28]
    assert check_dialogue(trajectory, EN, ATTUNE) is None


def test_a_model_that_does_not_answer_is_the_clients_failure() -> None:
    _, models = scripted()
    with pytest.raises(
        ClientFailure, match="the client's model scripted gave no answer to 'appraise': the script holds 0"
    ):
        asyncio.run(_first_reply(make_client(EN, ATTUNE, 0, models)))


async def _first_reply(client: Any) -> ClientTurn:
    opening = await client.open()
    return await client.reply([Message(speaker="client", text=opening.text), Message(speaker="supporter", text="Yes?")])


def test_a_failed_opening_leaves_a_dialogue_without_one() -> None:
    _, models = scripted("{}", "{}", "{}")
    trajectory = talk(load_spec("rlver-vanilla-v1"), models)
    assert trajectory.opening is None and trajectory.stop is Stop.ERROR
    assert check_dialogue(trajectory, EN, load_spec("rlver-vanilla-v1")) is None


def test_speech_that_breaks_a_rule_is_asked_for_again() -> None:
    turn, asked = turns_of(appraised(), spoken("Why? How? When?"), spoken("I'm at 36."), spoken("Fine, then."))
    assert turn.text == "Fine, then." and turn.appraisal["notes"] == []
    assert "could not be used: the message asked more than 2 questions." in texts(asked[2])
    assert "could not be used: the message told a number that the client does not know." in texts(asked[3])


def test_speech_that_breaks_a_rule_to_the_last_is_said_and_noted() -> None:
    turn, _ = turns_of(appraised(), spoken("Why? How? When?"), spoken(EN.opening or ""), "no JSON")
    assert (turn.text, turn.appraisal["notes"]) == (EN.opening, ["the message repeated an earlier one"])
    assert [call["rejected"] for call in turn.appraisal["calls"]] == [
        None,
        "the message asked more than 2 questions",
        "the message repeated an earlier one",
        "the answer was not one JSON object and nothing else",
    ]


def test_a_history_that_was_not_spoken_with_this_client_is_refused() -> None:
    client = make_client(EN, ATTUNE, 0, both(AnsweringModel()))
    asyncio.run(client.open())
    with pytest.raises(ValueError, match="not spoken with this client"):
        asyncio.run(client.reply([Message(speaker="client", text="Hi."), Message(speaker="supporter", text="Yes?")]))


def test_a_played_client_without_a_model_is_refused_with_the_remedy() -> None:
    for models in (None, {}, {"sage-v1": both(AnsweringModel())}):
        with pytest.raises(InputError, match=r"attune-v1 is played by a language model.*client\.spec=appraisal-v1"):
            make_client(EN, ATTUNE, 0, models)
    assert make_client(EN, load_spec("appraisal-v1"), 0)


# How the talk ends


@pytest.mark.parametrize(
    ("name", "changes", "emotions", "stop"),
    [
        ("sage-v1", [10] * 6, [40, 50, 60, 70, 80, 90, 100], Stop.SUCCESS),
        ("sage-v1", [-10] * 4, [40, 30, 20, 10, 0], Stop.FAILURE),
        ("sage-v1", [0] * 10, [40] * 11, Stop.TURN_LIMIT),
        ("rlver-challenging-v1", [60, 60, -5] + [0] * 5, [30, 90, 100, 95, 95, 95, 95, 95, 95], Stop.TURN_LIMIT),
        ("rlver-challenging-v1", [-25, -100], [30, 5, 0], Stop.FAILURE),
        ("rlver-vanilla-v1", [-10, -10, -9, -1], [30, 20, 10, 1, 0], Stop.FAILURE),
        ("attune-v1", [-10, -10, -10], [33, 23, 13, 3], Stop.FAILURE),
    ],
)
def test_emotion_goes_by_the_specs_clamp_range_and_end(
    name: str, changes: list[int], emotions: list[float], stop: Stop
) -> None:
    spec = load_spec(name)
    trajectory = talk(spec, both(AnsweringModel(lambda turn: changes[turn])))
    assert (trajectory.emotions, trajectory.stop) == (emotions, stop)
    assert [turn.client.written_change for turn in trajectory.turns] == changes
    check_emotions(trajectory, spec, "")


def test_a_clamp_narrower_than_the_schema_is_recorded_beside_what_was_written() -> None:
    turn, _ = turns_of(appraised(9), spoken(), spec=spec_with(clamp=4))
    assert (turn.written_change, turn.change, turn.emotion) == (9, 4, 37)


def test_the_client_may_say_goodbye_and_the_last_message_of_an_end_is_told_to_be_one() -> None:
    turn, asked = turns_of(appraised(2), spoken("I'll turn in.", goodbye=True))
    assert (turn.stop, turn.text) == (Stop.GOODBYE, "I'll turn in.")
    assert "You end the talk" not in texts(asked[1])
    turn, asked = turns_of(appraised(10), spoken(goodbye=True), spec=spec_with(llm={"start_emotion": 95}))
    assert (turn.stop, turn.emotion) == (Stop.SUCCESS, 100)
    assert "You end the talk now" in texts(asked[1])


# The record


def played(name: str = "attune-v1", card: PersonaCard = EN, **llm: Any) -> tuple[ClientSpec, Trajectory]:
    spec = spec_with(name, llm)
    return spec, talk(spec, both(AnsweringModel(lambda turn: (7, -3, 4)[turn % 3])), card=card)


def test_each_call_is_kept_with_prompt_model_seed_and_raw_answer() -> None:
    model = AnsweringModel(model="little-7b")
    trajectory = talk(spec_with(max_turns=2), both(model))
    kept = [Call.model_validate(call) for turn in trajectory.turns for call in turn.client.appraisal["calls"]]
    assert [call.prompt for call in kept] == [ask.prompt_hash for ask in model.asked]
    assert [(call.asked, call.seed) for call in kept] == [(ask.schema_name, ask.seed) for ask in model.asked]
    assert len({call.seed for call in kept}) == 4 and {call.model for call in kept} == {"little-7b"}
    first = trajectory.turns[0].client.appraisal
    assert json.loads(first["calls"][0]["raw"]) == first["appraised"]
    assert set(first) == {"band", "appraised", "goodbye", "notes", "calls"}


class Cached(AnsweringModel):
    """Answers from a cache."""

    async def ask(self, ask: Ask) -> Answer:
        """The same, taken from the cache."""
        return (await super().ask(ask)).model_copy(update={"cached": True})


def test_the_same_seed_gives_the_same_record_bit_for_bit_also_from_a_cache() -> None:
    runs = [talk(ATTUNE, both(model), seed=seed) for model, seed in zip(
        [AnsweringModel(), Cached(), AnsweringModel()], [5, 5, 6], strict=True
    )]  # fmt: skip
    lines = [canonical(run.model_dump(mode="json")) for run in runs]
    assert lines[0] == lines[1] != lines[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("card", [*CARDS.values()], ids=["en", "zh"])
def test_a_record_read_back_from_json_plays_again_without_a_model(name: str, card: PersonaCard) -> None:
    spec, trajectory = played(name, card)
    again = Trajectory.model_validate_json(canonical(trajectory.model_dump(mode="json")))
    rules = ClientSpec.model_validate_json(canonical(spec.model_dump(mode="json")))
    assert rules.hash == spec.hash and len(again.turns) == spec.max_turns
    assert check_dialogue(again, card, rules) is None


@settings(max_examples=20, deadline=None)
@given(replies=st.lists(st.text(st.characters(), max_size=60), min_size=1, max_size=4), name=st.sampled_from(NAMES))
def test_whatever_the_supporter_says_the_talk_goes_on_and_plays_again(replies: list[str], name: str) -> None:
    spec = load_spec(name)
    trajectory = talk(spec, both(AnsweringModel()), Says(*replies))
    assert (trajectory.stop, trajectory.error) == (Stop.TURN_LIMIT, None)
    assert check_dialogue(trajectory, EN, spec) is None


def test_rejected_answers_and_noted_speech_play_again() -> None:
    answers = ["no", appraised(3), spoken("A? B? C?"), spoken("A? B? C? D?"), spoken("A? B? C? D? E?")]
    _, models = scripted(*answers, appraised(1), spoken("Bye.", goodbye=True))
    trajectory = talk(ATTUNE, models)
    assert (trajectory.stop, len(trajectory.turns[0].client.appraisal["calls"])) == (Stop.GOODBYE, 5)
    assert check_dialogue(trajectory, EN, ATTUNE) is None


def changed(trajectory: Trajectory, change: Any) -> Trajectory:
    data = json.loads(canonical(trajectory.model_dump(mode="json")))
    change(data["turns"][1]["client"])
    return Trajectory.model_validate(data)


def _raw(client: dict[str, Any], old: str, new: str, call: int = 0) -> None:
    raw = client["appraisal"]["calls"][call]["raw"]
    assert old in raw
    client["appraisal"]["calls"][call]["raw"] = raw.replace(old, new)


FORGED: dict[str, tuple[Any, str]] = {
    "another change in the answer": (
        lambda c: _raw(c, "-3", "-2"),
        "emotion is recorded as 37.0, played again it is 38.0",
    ),
    "another thought in the answer": (
        lambda c: _raw(c, "lighter", "worse"),
        "can't be played again: the client's model",
    ),
    "other words in the answer": (lambda c: _raw(c, "part", "bit", 1), "text is recorded as"),
    "another text": (lambda c: c.update(text="Thank you!"), "text is recorded as 'Thank you!'"),
    "another thought": (
        lambda c: c["appraisal"]["appraised"].update(inner="x"),
        "appraisal.appraised.inner is recorded",
    ),
    "another prompt": (lambda c: c["appraisal"]["calls"][0].update(prompt="0" * 64), "is not the one that the record"),
    "another seed": (lambda c: c["appraisal"]["calls"][1].update(seed=1), "appraisal.calls.1.seed is recorded as 1"),
    "a call less": (
        lambda c: c["appraisal"]["calls"].pop(),
        "turn 2: can't be played again: the client's model recorded gave no answer to 'reply'",
    ),
    "a call more": (
        lambda c: c["appraisal"]["calls"].append(c["appraisal"]["calls"][0]),
        "appraisal.calls is recorded as",
    ),
    "a call without a prompt": (lambda c: c["appraisal"]["calls"][0].pop("prompt"), "calls can't be read"),
    "another band": (lambda c: c["appraisal"].update(band="S"), "appraisal.band is recorded as 'S'"),
    "a note hidden": (lambda c: c["appraisal"].update(notes=["fine"]), "appraisal.notes"),
    "an end": (lambda c: c.update(stop="goodbye"), "stop is recorded as 'goodbye'"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_record_does_not_play_again(case: str) -> None:
    forge, said = FORGED[case]
    spec, trajectory = played()
    finding = check_dialogue(changed(trajectory, forge), EN, spec)
    assert finding and finding.check == "replay" and said in finding.message


def test_a_forged_emotion_is_found_before_anything_is_played() -> None:
    spec, trajectory = played()
    finding = check_dialogue(changed(trajectory, lambda c: c.update(emotion=99.0)), EN, spec)
    assert finding and finding.check == "emotions"


def test_language_is_measured_where_no_embedded_client_has_heard_the_replies() -> None:
    trajectory = talk(ATTUNE, both(AnsweringModel()), Says("That must be hard for you.", "What happened then?"))
    measures = measure_language([trajectory], ATTUNE, Resampling(resamples=10))
    assert load_spec("appraisal-v1").embedded.limits.garbled == GARBLED
    assert measures.replies == 8 and measures.garbled.mean == 0
    assert measures.words.mean == pytest.approx((6 + 7 * 3) / 8)


# Two models, retests


def test_the_two_calls_may_go_to_two_models() -> None:
    feels, speaks = AnsweringModel(), AnsweringModel()
    spec = load_spec("rlver-vanilla-v1")
    trajectory = talk(spec, ClientModels(feels, speaks))
    assert {ask.schema_name for ask in feels.asked} == {"appraise"}
    assert {ask.schema_name for ask in speaks.asked} == {"open", "reply"}
    assert check_dialogue(trajectory, EN, spec) is None


def test_each_appraisal_is_retested_with_a_seed_of_its_own() -> None:
    spec = spec_with(llm={"temperature": 0.7, "retests": 2}, max_turns=1)
    model, models = scripted(appraised(4), appraised(6), "no", "no", "no", spoken())
    trajectory = talk(spec, models)
    turn = trajectory.turns[0].client
    assert (turn.written_change, turn.appraisal["retests"]) == (4, [6, None])
    assert {ask.temperature for ask in model.asked} == {0.7}
    assert len({ask.seed for ask in model.asked}) == 4
    assert retests_of([trajectory]) == Retest(pairs=1, missing=1, mean_difference=2.0, equal=0.0)
    assert check_dialogue(trajectory, EN, spec) is None


def test_agreement_of_two_appraisals_is_worked_out_over_the_turns_that_both_have() -> None:
    agreement = retest_agreement([5, -5, 0, None, 3], [5, 5, -2, 1, None])
    assert agreement == Retest(pairs=3, missing=2, mean_difference=4.0, equal=1 / 3)
    assert retest_agreement([], []) == Retest(pairs=0, missing=0, mean_difference=None, equal=None)
    assert retests_of([talk(ATTUNE, both(AnsweringModel()))]).mean_difference is None


class Silent(AnsweringModel):
    """Fails at the given question."""

    def __init__(self, failing: int) -> None:
        super().__init__()
        self._failing = failing

    async def ask(self, ask: Ask) -> Answer:
        """An answer, or none."""
        if len(self.asked) == self._failing:
            raise ModelError("the deadline passed")
        return await super().ask(ask)


@pytest.mark.parametrize("failing", range(4))
def test_what_was_played_until_a_failure_plays_again(failing: int) -> None:
    spec = spec_with(llm={"temperature": 0.5, "retests": 1})
    trajectory = talk(spec, both(Silent(failing)))
    assert trajectory.stop is Stop.ERROR and len(trajectory.turns) == failing // 3
    assert trajectory.error and "gave no answer to" in trajectory.error
    assert check_dialogue(trajectory, EN, spec) is None


def test_the_fence_of_a_turn_is_in_both_prompts_and_differs_from_turn_to_turn() -> None:
    model = AnsweringModel()
    talk(spec_with(max_turns=2), both(model))
    for index, ask in enumerate(model.asked):
        names = {match for message in ask.messages for match in re.findall(r"said-([0-9a-f]{12})", message.content)}
        assert names == {nonce(5, index // 2 + 1)}
