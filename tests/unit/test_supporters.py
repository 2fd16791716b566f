"""Scripted supporters: what they take up of the client's words, and that these words are all they see."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import supporters
from envs.cards import Language
from envs.dialogue import Supporter
from envs.errors import InputError
from envs.supporters import (
    PLAN,
    FixedReplies,
    GoodSupporter,
    MixingSupporter,
    bank,
    everyday_nouns,
    everyday_spans,
    everyday_topics,
    noun_spans,
    topics,
    words,
)
from envs.trajectory import Message

EN = "My sister took the letter to our lawyer, and I kept an old photo of her garden."
ZH = "昨天医院打来电话，说妈妈要住院。"


def talk(*texts: str) -> list[Message]:
    """A history of ``texts``, the client first, by turns."""
    return [Message(speaker=("client", "supporter")[i % 2], text=text) for i, text in enumerate(texts)]


def said(supporter: Supporter, messages: Sequence[Message]) -> str:
    return asyncio.run(supporter.reply(messages)).text


# What can be taken up


def test_nouns_are_found_behind_a_determiner_where_the_phrase_closes():
    found = [(determiner, EN[start:end]) for determiner, start, end in noun_spans(EN)]
    assert found == [("My", "sister"), ("the", "letter"), ("our", "lawyer"), ("her", "garden")]


@pytest.mark.parametrize(
    "text",
    [
        "I told nobody.",  # no determiner
        "The next morning was the worst.",  # vague nouns
        "My in, the and.",  # words that close a phrase
        "a TV, an ox",  # too short
        "the brave captain",  # "brave" is not closed by what follows
        "my",  # nothing follows
        "",
    ],
)
def test_no_noun_is_found_where_there_is_none_to_take_up(text):
    assert noun_spans(text) == []


def test_an_everyday_noun_is_taken_up_whatever_follows_it():
    assert noun_spans("my zebra galloped") == [] and noun_spans("my sister galloped") == [("my", 3, 9)]


def test_topics_turn_the_clients_words_to_the_supporters_side_newest_first():
    assert topics(talk(EN), "en") == ["her garden", "your lawyer", "the letter", "your sister"]
    assert topics(talk(EN, "Hm.", "His boss rang."), "en") == ["his boss", "her garden", "your lawyer", "the letter"]


def test_chinese_topics_are_short_clauses_of_the_client():
    assert topics(talk(ZH), "zh") == ["说妈妈要住院", "昨天医院打来电话"]
    assert topics(talk("嗯。我不知道。"), "zh") == ["我不知道"]


def test_only_the_clients_last_three_messages_are_taken_up_and_never_the_supporters():
    old = talk("My dog.", "The queen.", "My cake.", "The queen.", "My bag.", "The queen.", "My key.")
    assert topics(old, "en") == ["your key", "your bag", "your cake"]
    assert everyday_topics(talk("My key.", "The bag.", "Oh.")) == ["your key"]


@pytest.mark.parametrize(("language", "rest"), [("en", "what you told me"), ("zh", "你说的这件事")])
def test_where_nothing_can_be_taken_up_a_plain_phrase_stands_in(language, rest):
    assert topics(talk("..."), language) == [rest]


def test_everyday_nouns_are_found_as_whole_words_in_any_case():
    text = "The Letter, a letterbox and my DOG."
    assert [text[start:end] for start, end in everyday_spans(text)] == ["Letter", "DOG"]


def test_everyday_topics_are_the_clients_own_with_your_and_other_with_the():
    assert everyday_topics(talk("My sister lost a letter, and our dog the key.")) == [
        "your sister",
        "the letter",
        "your dog",
        "the key",
    ]


def test_everyday_topics_come_from_the_newest_message_that_has_any():
    assert everyday_topics(talk("My sister.", "Hm.", "The phone and the phone.", "Hm.", "So.")) == ["the phone"]
    assert everyday_topics(talk("So.")) == ["what you told me"]


def test_everyday_nouns_are_lower_case_words_without_repetition_and_none_is_vague():
    nouns = everyday_nouns()
    assert len(set(nouns)) == len(nouns) >= 100
    assert all(noun.isalpha() and noun.islower() for noun in nouns)
    assert not set(nouns) & (words("vague") | words("closing"))


@settings(deadline=None)
@given(
    st.text(st.sampled_from("my the a an our her letter dog zebra .,’'“ \n你好，。x") | st.characters(), max_size=60)
)
def test_whatever_the_client_says_there_is_something_to_take_up_and_spans_hold_words(text):
    for language in ("en", "zh"):
        assert topics(talk(text), language) and all(topic.strip() for topic in topics(talk(text), language))
    spans = [(start, end) for _, start, end in noun_spans(text)]
    assert all(text[start:end].isalpha() for start, end in spans + everyday_spans(text))
    assert spans == sorted(spans)


# The supporters


def test_no_supporter_is_made_from_a_card_or_sees_one():
    classes = [
        kind for _, kind in inspect.getmembers(supporters, inspect.isclass) if kind.__module__ == supporters.__name__
    ]
    assert {kind.__name__ for kind in classes} == {"FixedReplies", "GoodSupporter", "MixingSupporter"}
    for kind in classes:
        assert set(inspect.signature(kind).parameters) <= {"replies", "language", "seed"}
        assert list(inspect.signature(vars(kind)["reply"]).parameters) == ["self", "messages"]
    assert not hasattr(supporters, "PersonaCard")


def test_fixed_replies_come_in_order_and_begin_again():
    fixed, history = FixedReplies(["One.", ""]), talk("Hello.")
    heard = []
    for _ in range(3):
        heard.append(said(fixed, history))
        history += [Message(speaker="supporter", text=heard[-1]), Message(speaker="client", text="So.")]
    assert heard == ["One.", "", "One."]
    with pytest.raises(InputError, match="at least one"):
        FixedReplies([])


@pytest.mark.parametrize(("language", "opening"), [("en", EN), ("zh", ZH)])
@pytest.mark.parametrize("kind", [GoodSupporter, MixingSupporter])
def test_a_supporter_says_the_same_with_the_same_seed_and_history(kind, language, opening):
    def replies(seed: int) -> list[str]:
        supporter, history = kind(language, seed), talk(opening)
        heard = []
        for _ in range(8):
            heard.append(said(supporter, history))
            history += talk("", heard[-1], opening)[1:]
        return heard

    assert replies(1) == replies(1)
    assert len({tuple(replies(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(("language", "opening"), [("en", EN), ("zh", ZH)])
def test_a_good_supporter_follows_its_plan_and_takes_up_what_was_said(language: Language, opening: str):
    supporter, history, good = GoodSupporter(language, 3), talk(opening), bank(language)["good"]
    subjects = topics(history, language)
    for acts in PLAN:
        reply = said(supporter, history)
        filled = [{line.format(topic=topic) for line in good[act] for topic in subjects} for act in acts]
        assert any(reply.startswith(first) for first in filled[0]) and any(reply.endswith(last) for last in filled[1])
        history += [Message(speaker="supporter", text=reply), Message(speaker="client", text=opening)]


def test_a_good_supporter_says_no_sentence_twice_over_its_plan():
    supporter, history = GoodSupporter("en", 5), talk("Oh.")
    sentences: list[str] = []
    good = [line.format(topic="what you told me") for lines in bank("en")["good"].values() for line in lines]
    for _ in PLAN:
        reply = said(supporter, history)
        sentences += [line for line in good if line in reply]
        history += [Message(speaker="supporter", text=reply), Message(speaker="client", text="Oh.")]
    assert len(sentences) == 2 * len(PLAN) == len(set(sentences))


@pytest.mark.parametrize(("language", "opening"), [("en", EN), ("zh", ZH)])
def test_a_mixing_supporter_uses_every_act_good_and_bad_and_only_sentences_of_its_bank(
    language: Language, opening: str
):
    history = talk(opening)
    subjects = everyday_topics(history) if language == "en" else topics(history, language)
    acts = {
        f"{group} {act}": {line.format(topic=topic) for line in lines for topic in subjects}
        for group, by_act in bank(language).items()
        for act, lines in by_act.items()
    }
    sentences = sorted(set().union(*acts.values()), key=len, reverse=True)
    used: set[str] = set()
    for seed in range(400):
        left = said(MixingSupporter(language, seed), history)
        used |= {act for act, lines in acts.items() if any(line in left for line in lines)}
        for sentence in sentences:
            left = left.replace(sentence, "")
        assert not left.strip()
    assert used == set(acts)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sentences_of_a_bank_have_no_place_but_for_a_topic(language):
    for lines in (lines for group in bank(language).values() for lines in group.values()):
        assert len(lines) == len(set(lines)) > 0
        assert not [line for line in lines if set("{}") & set(line.format(topic="x"))]


def test_a_language_without_a_bank_is_refused_by_file():
    with pytest.raises(InputError, match=r"supporters.xx\.yaml: is no bank"):
        bank("xx")  # pyright: ignore[reportArgumentType]
