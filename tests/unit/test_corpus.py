"""The bootstrap corpus: training cards only, everyday nouns swapped for everyday nouns, the same for the same seed."""

from __future__ import annotations

import re

import pytest

from envs.cards import CARDS_DIR, load_card
from envs.client_spec import load_spec
from envs.errors import InputError
from envs.receipts import check_emotions
from envs.supporters import everyday_nouns, everyday_spans
from envs.trajectory import Stop
from tests.unit.dialogues import card
from trainers.corpus import generate_corpus, generate_exchanges

SPEC = load_spec("appraisal-v1")
TRAINED = [card("en-a"), card("en-b", CARDS_DIR / "en" / "eleven-dresses.yaml", split="train")]
HELD_OUT = load_card(CARDS_DIR / "en" / "biscuit-tin.yaml")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_held_out_card_is_refused_by_name_for_dialogues_and_for_exchanges(split):
    cards = [*TRAINED, card("en-held", split=split)]
    for generate in (lambda: generate_corpus(cards, SPEC, 1, 0), lambda: generate_exchanges(cards, 1, 0)):
        with pytest.raises(InputError, match=f"card en-held: is a {split} card; .* only be made from training cards"):
            generate()


def test_a_shipped_test_card_is_refused():
    with pytest.raises(InputError, match="card en-biscuit-tin: is a test card"):
        generate_exchanges([HELD_OUT], 1, 0)


def test_each_card_is_played_as_often_as_asked_and_the_order_is_fixed():
    corpus = generate_corpus(TRAINED, SPEC, 2, seed=1)
    assert [one.dialogue_id for one in corpus] == ["corpus/en-a/0", "corpus/en-b/0", "corpus/en-a/1", "corpus/en-b/1"]
    assert len({one.seed for one in corpus}) == 4
    for one in corpus:
        assert one.stop is not Stop.ERROR and one.turns
        check_emotions(one, SPEC, one.dialogue_id)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    first, again, other = (generate_corpus(TRAINED, SPEC, 1, seed) for seed in (1, 1, 2))
    assert first == again
    assert [one.messages for one in first] != [one.messages for one in other]


def test_what_is_said_to_a_card_does_not_depend_on_the_cards_beside_it():
    alone = generate_corpus(TRAINED[:1], SPEC, 2, seed=1)
    assert alone == generate_corpus(TRAINED, SPEC, 2, seed=1)[::2]


def test_the_same_seed_gives_the_same_exchanges_and_another_seed_others():
    assert (
        generate_exchanges(TRAINED, 20, 1) == generate_exchanges(TRAINED, 20, 1) != generate_exchanges(TRAINED, 20, 2)
    )


def test_an_exchange_is_a_line_of_the_client_and_an_answer():
    exchanges = generate_exchanges(TRAINED, 30, 4)
    assert len(exchanges) == 30
    assert all([message.speaker for message in talk] == ["client", "supporter"] for talk in exchanges)
    assert all(message.text.strip() for talk in exchanges for message in talk)


def masked(text: str) -> str:
    """``text`` with each of its everyday nouns as a blank."""
    for start, end in reversed(everyday_spans(text)):
        text = text[:start] + "_" + text[end:]
    return text


def test_only_everyday_nouns_are_swapped_and_only_for_everyday_nouns():
    lines = [line for one in TRAINED for line in (one.script.opening, *(fact.say for fact in one.script.facts))]
    frames = {masked(line) for line in lines}
    said = [talk[0].text for talk in generate_exchanges(TRAINED, 200, 7)]
    assert {masked(text) for text in said} == frames
    assert len({text for text in said if "_" in masked(text)} - set(lines)) > 50


def test_a_noun_may_be_swapped_for_any_everyday_noun():
    said = " ".join(talk[0].text for talk in generate_exchanges(TRAINED, 600, 7)).lower()
    assert len(set(re.findall(r"[a-z]+", said)) & set(everyday_nouns())) > 0.9 * len(everyday_nouns())
