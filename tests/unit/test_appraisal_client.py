"""The embedded client in a talk: what it feels, tells and keeps to itself, when it leaves, and its replay."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from envs.cards import CARDS_DIR, PersonaCard, load_card
from envs.client_spec import ClientSpec, load_spec
from envs.clients import make_client
from envs.clients.appraisal import AppraisalClient
from envs.dialogue import DialoguePlan, Supporter, run_dialogues
from envs.perception import Heard, Percept, register
from envs.supporters import FixedReplies, GoodSupporter, MixingSupporter
from envs.trajectory import ClientTurn, Message, Stop, Trajectory
from tests.unit.dialogues import card

SPEC = load_spec("appraisal-v1")
BUS, BASKET = CARDS_DIR / "en" / "bus-depot-letter.yaml", CARDS_DIR / "zh" / "biscuit-tin-letters.yaml"
PLAYED = [
    load_card(CARDS_DIR / name)
    for name in ("en/bus-depot-letter.yaml", "en/biscuit-tin.yaml", "zh/biscuit-tin-letters.yaml")
] + [load_card(sorted((CARDS_DIR / "zh").glob("*.yaml"))[2])]


class AsTold:
    """A perceiver that notices just what the reply, as JSON, says that it does."""

    name = "as-told"

    def perceive(self, reply: str, heard: Heard) -> Percept:
        plain = {"acts": ["other"], "moves": [], "uptake": 1.0, "taken_up": [], "questions": 0, "words": 20}
        plain |= {"echo": 0.0, "repetition": 0.0, "gibberish": 0.0, "flattery": False, "meta": False, "evidence": {}}
        return Percept.model_validate(plain | json.loads(reply))


register(AsTold.name, AsTold)
TOLD = ClientSpec.model_validate(SPEC.model_dump() | {"perceiver": AsTold.name})
# Susceptibility of valence: 0.21*0.4 + 0.59*0.8 + 0.19*0.6 = 0.67. A push of 1 is 46 * (1 - 0.5) * 0.67 = 15.41 points.
PERSON: dict[str, Any] = {
    "hidden_need": "real_advice",
    "temperament": "avoidant",
    "soothes": [{"act": "self_disclosure", "because": "x"}] * 2,
    "hurts": [{"act": "information", "because": "x"}] * 2,
    "big_five": {
        "openness": 0.5,
        "conscientiousness": 0.5,
        "extraversion": 0.4,
        "agreeableness": 0.8,
        "neuroticism": 0.6,
    },
    "inertia": 0.5,
    "start_emotion": 40,
}
REFLECTION, RESTATEMENT, BLAMING, SMALL_TALK = (
    {"acts": [a]} for a in ("reflection", "restatement", "blaming", "other")
)


def person(**changes: Any) -> PersonaCard:
    return card("en-person", **PERSON | changes)


async def _talk(client: AppraisalClient, replies: Sequence[str]) -> list[ClientTurn]:
    turns = [await client.open()]
    messages = [Message(speaker="client", text=turns[0].text)]
    for reply in replies:
        messages.append(Message(speaker="supporter", text=reply))
        turns.append(await client.reply(messages))
        messages.append(Message(speaker="client", text=turns[-1].text))
        if turns[-1].stop:
            break
    return turns


def told(who: PersonaCard, *replies: dict[str, Any], seed: int = 0) -> list[ClientTurn]:
    """The client's turns after replies that do what the dictionaries say."""
    return asyncio.run(_talk(AppraisalClient(who, TOLD, seed), [json.dumps(reply) for reply in replies]))


def played(who: Sequence[PersonaCard], kind: type[GoodSupporter | MixingSupporter], seed: int) -> list[Trajectory]:
    return asyncio.run(run_dialogues([plan(one, kind(one.language, seed), seed) for one in who], 8))


def plan(who: PersonaCard, supporter: Supporter, seed: int) -> DialoguePlan:
    return DialoguePlan(f"test/{who.id}/{seed}", who, SPEC, seed, make_client(who, SPEC, seed), supporter)


# What it feels


def test_a_talk_opens_with_the_cards_opening_at_its_start_emotion():
    (opening,) = told(person())
    assert (opening.text, opening.emotion) == (person().script.opening, 40)
    assert (opening.written_change, opening.change, opening.stop) == (0, 0, None)


def test_a_reflection_that_takes_up_what_was_said_lifts_by_eight_points():
    # 0.55 * 15.41 = 8.4755; valence -0.2 + 0.5 * 0.67 * 0.55 = -0.01575.
    turn = told(person(), REFLECTION)[1]
    assert (turn.written_change, turn.change, turn.emotion) == (8, 8, 48)
    assert turn.appraisal["why"] == [{"reason": "reflection", "push": 0.55}]
    assert turn.appraisal["affect"][0] == pytest.approx(-0.01575, abs=1e-4)
    assert (turn.appraisal["phase"], turn.appraisal["tone"], turn.appraisal["met_need"]) == (
        "explore",
        "warming",
        False,
    )


def test_blame_asks_for_thirteen_points_down_of_which_the_clamp_leaves_ten():
    # -0.80 * 1.05 * 15.41 = -12.94.
    turn = told(person(), BLAMING)[1]
    assert (turn.written_change, turn.change, turn.emotion) == (-13, -10, 30)
    assert turn.appraisal["tone"] == "hurt"


def test_what_the_range_cuts_off_is_recorded_too():
    turn = told(person(start_emotion=97), REFLECTION)[1]
    assert (turn.written_change, turn.change, turn.emotion) == (8, 3, 100)


def test_inertia_holds_the_same_reply_back():
    assert [told(person(inertia=inertia), REFLECTION)[1].change for inertia in (0, 0.5, 1)] == [10, 8, 0]


def test_the_phase_of_a_turn_is_that_before_its_own_disclosure():
    turns = told(person(), REFLECTION, RESTATEMENT, REFLECTION, RESTATEMENT, REFLECTION)[1:]
    assert [turn.appraisal["phase"] for turn in turns] == ["explore", "explore", "comfort", "comfort", "act"]
    assert [turn.appraisal["disclosed"] for turn in turns] == [1, 2, 3, 4, 5]


# What it tells


def test_facts_come_out_in_the_cards_order_one_for_each_reply_that_was_heard():
    who = person()
    turns = told(who, REFLECTION, RESTATEMENT, SMALL_TALK, REFLECTION)[1:]
    facts = [fact.say for fact in who.script.facts]
    disclosed = [[fact for fact in facts if fact in turn.text] for turn in turns]
    assert disclosed == [facts[:1], facts[1:2], [], facts[2:3]]


@pytest.mark.parametrize("reply", [SMALL_TALK, BLAMING, {"uptake": 0.0}, {"words": 0}, {"gibberish": 1.0}])
def test_nothing_is_disclosed_to_a_reply_that_did_not_reach_the_client(reply):
    who = person()
    said = told(who, reply)[1]
    assert not [fact for fact in who.script.facts if fact.say in said.text]
    assert said.appraisal["disclosed"] == 0


@pytest.mark.parametrize("path", [BUS, BASKET], ids=["en", "zh"])
def test_to_a_good_supporter_in_its_language_the_facts_come_out_in_order(path):
    who = load_card(path)
    (trajectory,) = played([who], GoodSupporter, seed=1)
    text = "\n".join(message.text for message in trajectory.messages if message.speaker == "client")
    places = [text.find(fact.say) for fact in who.script.facts]
    count = sum(place >= 0 for place in places)
    assert count >= 4 and places[:count] == sorted(places[:count]) and set(places[count:]) <= {-1}


@pytest.mark.parametrize("path", [BUS, BASKET], ids=["en", "zh"])
def test_to_a_supporter_who_repeats_a_poster_nothing_is_told(path):
    who = load_card(path)
    replies = ["Stay positive."] if who.language == "en" else ["加油。"]
    (trajectory,) = asyncio.run(run_dialogues([plan(who, FixedReplies(replies), 1)], 1))
    text = "\n".join(message.text for message in trajectory.messages if message.speaker == "client")
    assert not [fact for fact in who.script.facts if fact.say in text]
    assert trajectory.final_emotion is not None and trajectory.final_emotion < who.script.start_emotion


@pytest.mark.parametrize(
    ("reply", "cause"),
    [(BLAMING, "blaming"), ({"gibberish": 1.0}, "gibberish"), ({"words": 0}, "silence"), ({"meta": True}, "meta")],
)
@pytest.mark.parametrize("path", [BUS, BASKET], ids=["en", "zh"])
def test_a_reply_that_went_wrong_is_answered_first_in_the_clients_language(path, reply, cause):
    who = load_card(path)
    said = told(who, reply)[1]
    assert said.text.startswith(SPEC.embedded.reactions[who.language][cause])


def test_english_parts_are_joined_by_a_space_and_chinese_ones_by_nothing():
    english, chinese = person(), load_card(BASKET)
    assert f" {english.script.facts[0].say}" in told(english, REFLECTION)[1].text
    said = told(chinese, RESTATEMENT)[1].text
    assert chinese.script.facts[0].say in said and not re.search(r"\s", said)


def test_no_voice_line_is_said_twice_while_another_is_left():
    who = person(temperament="passive")
    texts = [turn.text for turn in told(who, SMALL_TALK, SMALL_TALK, SMALL_TALK)[1:]]
    assert sorted(texts) == sorted(who.script.voice.guarded)


# When it leaves


@pytest.mark.parametrize(("temperament", "patience"), [("negative", 3), ("passive", 5), ("avoidant", 4)])
def test_a_client_says_goodbye_when_its_patience_is_spent(temperament, patience):
    who = person(temperament=temperament)
    turns = told(who, *[SMALL_TALK] * 8)[1:]
    assert [turn.stop for turn in turns] == [None] * (patience - 1) + [Stop.GOODBYE]
    assert turns[-1].text == who.script.voice.leaving


def test_one_warm_reply_renews_the_patience():
    turns = told(person(temperament="negative"), SMALL_TALK, SMALL_TALK, REFLECTION, SMALL_TALK, SMALL_TALK)[1:]
    assert [turn.stop for turn in turns] == [None] * 5


def test_a_talk_fails_when_the_emotion_falls_below_ten():
    who = person(start_emotion=19)
    turns = told(who, BLAMING, REFLECTION)[1:]
    assert [(turn.emotion, turn.stop) for turn in turns] == [(9, Stop.FAILURE)]
    assert turns[-1].text == who.script.voice.leaving


def test_an_emotion_of_just_ten_is_no_failure():
    assert [(turn.emotion, turn.stop) for turn in told(person(start_emotion=20), BLAMING)[1:]] == [(10, None)]


def test_a_talk_succeeds_when_the_emotion_reaches_a_hundred():
    who = person(start_emotion=92)
    turns = told(who, REFLECTION, BLAMING)[1:]
    assert [(turn.emotion, turn.stop) for turn in turns] == [(100, Stop.SUCCESS)]
    assert turns[-1].text == who.script.voice.relieved


def test_the_last_turn_of_the_spec_says_that_it_is_the_last():
    slow = person(start_emotion=20, inertia=0.9)
    turns = told(slow, *[REFLECTION, RESTATEMENT] * 5)[1:]
    assert [turn.stop for turn in turns] == [None] * 7 + [Stop.TURN_LIMIT]


# That it can be replayed


@pytest.mark.parametrize("kind", [GoodSupporter, MixingSupporter])
def test_the_same_card_spec_seed_and_replies_give_the_same_talk(kind):
    assert played(PLAYED, kind, seed=3) == played(PLAYED, kind, seed=3)


def test_a_client_answers_a_recorded_history_as_it_did_then():
    for recorded in played(PLAYED, MixingSupporter, seed=5):
        who = next(one for one in PLAYED if one.id == recorded.card_id)
        again = asyncio.run(_talk(AppraisalClient(who, SPEC, 5), [turn.supporter.text for turn in recorded.turns]))
        assert again[1:] == [turn.client for turn in recorded.turns]


def test_the_seed_changes_the_words_and_not_the_feeling():
    talks = [told(person(), SMALL_TALK, REFLECTION, BLAMING, seed=seed) for seed in range(8)]
    assert len({tuple(turn.text for turn in turns) for turns in talks}) > 1
    assert len({tuple(turn.emotion for turn in turns) for turns in talks}) == 1


def test_a_history_of_another_client_is_refused_and_changes_nothing():
    async def strangers() -> ClientTurn:
        client = AppraisalClient(person(), TOLD, 0)
        own = Message(speaker="client", text=(await client.open()).text)
        reply = Message(speaker="supporter", text=json.dumps(REFLECTION))
        foreign = Message(speaker="client", text="My sister has not written.")
        for history in ([foreign, reply], [own, reply, foreign, reply], [own], [own, reply, own], [reply]):
            with pytest.raises(ValueError, match="not spoken with this client"):
                await client.reply(history)
        return await client.reply([own, reply])

    assert asyncio.run(strangers()) == told(person(), REFLECTION)[1]


def test_a_client_that_has_not_opened_refuses_to_answer():
    with pytest.raises(ValueError, match="not spoken with this client"):
        asyncio.run(
            AppraisalClient(person(), TOLD, 0).reply(
                [Message(speaker="client", text=person().script.opening), Message(speaker="supporter", text="{}")]
            )
        )


# What it keeps to itself


def lines_of(who: PersonaCard) -> list[str]:
    voice = who.script.voice
    own = [who.script.opening, *(fact.say for fact in who.script.facts), *voice.warming, *voice.guarded, *voice.hurt]
    reactions = [line for lines in SPEC.embedded.reactions[who.language].values() for line in lines]
    return [*own, voice.leaving, voice.relieved, *reactions]


@pytest.mark.parametrize("kind", [GoodSupporter, MixingSupporter])
def test_every_word_it_says_stands_among_the_lines_of_its_card_and_the_specs_reactions(kind):
    for trajectory in played(PLAYED, kind, seed=2):
        who = next(one for one in PLAYED if one.id == trajectory.card_id)
        for message in trajectory.messages:
            left = message.text
            for line in sorted(lines_of(who), key=len, reverse=True):
                left = left.replace(line, "")
            assert message.speaker == "supporter" or not left.strip()


@pytest.mark.parametrize("kind", [GoodSupporter, MixingSupporter])
def test_neither_its_need_nor_what_works_with_it_nor_the_reasons_of_its_feeling_are_ever_said(kind):
    for trajectory in played(PLAYED, kind, seed=4):
        who = next(one for one in PLAYED if one.id == trajectory.card_id)
        kept = {
            who.script.hidden_need.value,
            who.script.hidden_need.value.replace("_", " "),
            who.script.temperament.value,
            who.speech,
        }
        kept |= {sensitivity.because for sensitivity in (*who.script.soothes, *who.script.hurts)}
        for turn in trajectory.turns:
            reasons = {why["reason"] for why in turn.client.appraisal["why"] if " " in why["reason"]}
            assert not [words for words in kept | reasons if words.lower() in turn.client.text.lower()]


def test_no_emotion_stands_in_what_it_says():
    # A card without any figure: each that came out would be the client's own.
    say = [
        {"stage": "deep", "say": f"And then there was {thing}."}
        for thing in ("rain", "he", "she", "tea", "a dog", "mud")
    ]
    who = person(facts=say)
    assert not re.search(r"\d", "".join(lines_of(who)))
    replies = [REFLECTION, BLAMING, {"meta": True}, RESTATEMENT, {"gibberish": 1.0}, REFLECTION, SMALL_TALK]
    said = [turn.text for turn in told(who, *replies)]
    assert len(said) == len(replies) + 1 and not re.search(r"\d", "".join(said))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_reaction_of_the_spec_has_a_figure_in_it(language):
    reactions = SPEC.embedded.reactions[language]
    assert len(reactions) >= 16 and not re.search(r"\d", json.dumps(reactions, ensure_ascii=False))
