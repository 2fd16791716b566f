"""Cards: what the schema refuses, what the shipped set holds, how people are split, and that no split leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from envs.card_set import assign_splits, find_leaks, jaccard, load_cards, persona_text
from envs.cards import CARDS_DIR, HiddenNeed, PersonaCard, Temperament, load_card
from envs.errors import InputError, describe_validation

MODEL = CARDS_DIR / "en" / "bus-depot-letter.yaml"
CARDS = load_cards()


def raw() -> dict[str, Any]:
    return yaml.safe_load(MODEL.read_text(encoding="utf-8"))


def like(base: PersonaCard, card_id: str, **changes: Any) -> PersonaCard:
    return PersonaCard.model_validate(base.model_dump() | {"id": card_id} | changes)


def save(folder: Path, name: str, data: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a missing key": (lambda d: d.pop("opening"), "opening: is missing; add it"),
    "a missing inner key": (lambda d: d["profile"].pop("age"), "profile.age: is missing; add it"),
    "an unknown key": (lambda d: d.update(mood="sad"), "mood: is not a known key; remove it or correct its spelling"),
    "an age below 16": (lambda d: d["profile"].update(age=15), "profile.age: Input should be greater than or equal to"),
    "an emotion over 100": (lambda d: d.update(start_emotion=101), "start_emotion: Input should be less than or equal"),
    "an inertia over 1": (lambda d: d.update(inertia=1.1), "inertia: Input should be less than or equal to 1"),
    "an unknown need": (lambda d: d.update(hidden_need="money"), "hidden_need: Input should be 'dialectical_analysis'"),
    "an unknown split": (lambda d: d.update(split="valid"), "split: Input should be 'train', 'dev' or 'test'"),
    "an empty licence": (lambda d: d.update(licence="  "), "licence: String should have at least 1 character"),
    "five facts": (lambda d: d.update(facts=d["facts"][:5]), "facts: Tuple should have at least 6 items"),
    "an id in capitals": (lambda d: d.update(id="en-Bus"), "id: String should match pattern"),
    "an id of another language": (lambda d: d.update(id="zh-bus"), "must start with the card's language, 'en'"),
    "facts out of order": (lambda d: d["facts"].reverse(), "facts must come in the order surface, middle, deep"),
    "an act on both sides": (
        lambda d: d["hurts"][0].update(act="reflection"),
        "the same act can't both soothe and hurt",
    ),
    "a harm that soothes": (
        lambda d: d["soothes"][0].update(act="blaming"),
        "blaming is a harmful act and can't stand under soothes",
    ),
    "acute danger in training": (lambda d: d.update(risk="acute"), "a person in acute danger may only be a test card"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_card_is_refused_with_its_file_its_key_and_what_is_wrong(tmp_path, case):
    spoil, said = REFUSED[case]
    data = raw()
    spoil(data)
    path = save(tmp_path, "card.yaml", data)
    with pytest.raises(InputError) as error:
        load_card(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


def test_every_wrong_key_of_a_card_is_told_at_once(tmp_path):
    path = save(tmp_path, "card.yaml", raw() | {"start_emotion": -1, "mood": "sad"})
    with pytest.raises(InputError) as error:
        load_card(path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id: [en", "is not valid YAML"),
        (b"- en", "a card is a mapping"),
        (b"", "a card is a"),
        (b"\xff", "can't be read"),
    ],
)
def test_a_file_that_is_no_card_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "card.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_card(path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


def test_a_card_that_is_not_there_is_refused_with_the_command_that_lists_them(tmp_path):
    with pytest.raises(InputError, match="no such card; `attune cards stats`"):
        load_card(tmp_path / "nobody.yaml")


def test_an_id_that_is_taken_is_refused_and_both_files_are_named(tmp_path):
    save(tmp_path, "a.yaml", raw())
    save(tmp_path, "b.yaml", raw())
    with pytest.raises(InputError, match=r"b\.yaml: id 'en-bus-depot-letter' is already that of .*a\.yaml"):
        load_cards([tmp_path])


def test_every_wrong_file_of_a_folder_is_told_at_once(tmp_path):
    save(tmp_path, "a.yaml", raw() | {"inertia": 2})
    save(tmp_path, "b.yaml", raw())
    save(tmp_path, "c.yaml", [])
    with pytest.raises(InputError) as error:
        load_cards([tmp_path])
    told = str(error.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in told] == ["a.yaml", "c.yaml"]


def test_a_folder_without_cards_and_a_folder_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="no card"):
        load_cards([tmp_path])
    with pytest.raises(InputError, match="there is no such file or folder"):
        load_cards([tmp_path / "none"])


def test_a_card_can_not_be_changed_and_its_hash_follows_its_content():
    card = load_card(MODEL)
    with pytest.raises(ValueError, match="frozen"):
        card.start_emotion = 50  # pyright: ignore[reportAttributeAccessIssue]
    assert like(card, card.id).hash == card.hash != like(card, card.id, start_emotion=34).hash
    assert len(card.hash) == 64


def test_the_shipped_set_holds_at_least_ninety_six_english_and_twenty_four_chinese_people():
    count = Counter(card.language for card in CARDS)
    assert count["en"] >= 96 and count["zh"] >= 24
    assert len({persona_text(card) for card in CARDS}) == len({card.hash for card in CARDS}) == len(CARDS)


def test_every_shipped_card_lies_in_the_folder_of_its_language_under_its_own_name():
    files = {path.stem: path.parent.name for path in CARDS_DIR.rglob("*.yaml")}
    assert {card.id.split("-", 1)[1]: card.language for card in CARDS} == files


@pytest.mark.parametrize("language", ["en", "zh"])
def test_two_thirds_train_one_sixth_is_dev_and_one_sixth_is_test_in_each_language(language):
    count = Counter(card.split for card in CARDS if card.language == language)
    whole = count.total()
    for split, share in {"train": Fraction(2, 3), "dev": Fraction(1, 6), "test": Fraction(1, 6)}.items():
        assert abs(count[split] - share * whole) <= 1, split


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_need_and_every_temperament_is_met_in_each_split(split):
    own = [card for card in CARDS if card.split == split]
    assert {card.script.hidden_need for card in own} == set(HiddenNeed)
    assert {card.script.temperament for card in own} == set(Temperament)


def test_the_stored_splits_are_those_that_the_persona_texts_give():
    assert assign_splits(CARDS) == {card.id: card.split for card in CARDS}


def test_renaming_cards_or_reading_them_in_another_order_changes_no_split():
    renamed = [like(card, f"{card.language}-{len(CARDS) - number}") for number, card in enumerate(CARDS)]
    splits = assign_splits(renamed[::-1])
    assert [splits[card.id] for card in renamed] == [card.split for card in CARDS]


def test_moving_a_card_to_another_file_changes_nothing_of_it(tmp_path):
    moved = load_card(save(tmp_path, "zzz.yaml", raw()))
    assert moved == load_card(MODEL)


def test_people_in_acute_danger_are_test_cards_wherever_their_text_would_put_them():
    assert {card.split for card in CARDS if card.risk == "acute"} == {"test"}
    # More of them than the test split has places for this need.
    endangered = [
        like(card, card.id, risk="acute", split="test") for card in CARDS if card.script.hidden_need == "listening"
    ]
    splits = assign_splits([*endangered, *(card for card in CARDS if card.script.hidden_need != "listening")])
    assert {splits[card.id] for card in endangered} == {"test"}


def test_the_same_person_told_twice_stays_in_one_split_even_with_another_need():
    needs = list(HiddenNeed)
    told_again = [
        like(card, f"{card.id}-2", hidden_need=needs[(needs.index(card.script.hidden_need) + 3) % 8]) for card in CARDS
    ]
    splits = assign_splits([*CARDS, *told_again])
    assert [splits[card.id] for card in CARDS] == [splits[card.id] for card in told_again]
    assert set(splits.values()) == {"train", "dev", "test"}
    assert assign_splits([*told_again, *CARDS]) == splits


def test_the_shipped_set_has_no_leak():
    assert find_leaks(CARDS) == []


def test_the_same_person_in_two_splits_is_a_leak_whatever_layout_and_capitals():
    card = load_card(MODEL)
    profile = raw()["profile"] | {"name": "DESMOND  Achterberg."}
    twin = like(card, "en-twin", split="dev", profile=profile, opening="Hello.", facts=other_facts())
    assert [(leak.first.id, leak.second.id, leak.likeness) for leak in find_leaks([card, twin])] == [
        ("en-bus-depot-letter", "en-twin", 1.0)
    ]


def other_facts() -> list[dict[str, str]]:
    return [{"stage": "deep", "say": f"Quite another story, number {number}."} for number in range(6)]


def test_a_person_who_was_only_renamed_is_a_near_duplicate():
    card = load_card(MODEL)
    profile = raw()["profile"] | {"name": "Gerrit Vos", "age": 57}
    (leak,) = find_leaks([card, like(card, "en-gerrit", split="test", profile=profile)])
    assert 0.8 < leak.likeness < 1


def test_two_strangers_and_two_tellings_within_one_split_are_no_leak():
    card = load_card(MODEL)
    assert find_leaks([card, like(card, "en-twin")]) == []
    assert find_leaks([card, next(other for other in CARDS if other.split == "test")]) == []


def test_jaccard_is_the_shared_part_of_the_union():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 2 / 4
    assert jaccard(frozenset(), frozenset()) == 0


NEED_NAMES_ZH = ("辩证分析", "真实建议", "他人动机", "自我反思", "真诚的赞美", "倾听的需要", "深度共情", "隐藏需求")


def test_no_line_that_a_client_can_say_names_its_hidden_need_or_describes_what_works_with_it():
    for card in CARDS:
        voice = card.script.voice
        facts = [fact.say for fact in card.script.facts]
        said = [card.script.opening, *facts, *voice.warming, *voice.guarded, *voice.hurt, voice.leaving, voice.relieved]
        text = "\n".join(said).casefold()
        need = card.script.hidden_need.value
        # "Listening" is an everyday word as well; what would give that need away is asking for it.
        asked = ["listen to me", "want to be heard"] if need == "listening" else [need, need.replace("_", " ")]
        named = [*asked, "hidden need", *NEED_NAMES_ZH]
        described = [card.speech, *(s.because for s in (*card.script.soothes, *card.script.hurts))]
        assert not [words for words in (*named, *described) if words.casefold() in text], card.id


def test_every_card_names_its_licence_and_its_source():
    assert {card.licence for card in CARDS} == {"Apache-2.0"}
    assert all(card.source.strip() for card in CARDS)


IMPORTED = {
    "id": "en-imported",
    "language": "en",
    "split": "train",
    "source": "a test",
    "licence": "CC0-1.0",
    "profile": "Mara, 44, drives a tram and sings in a choir.",
    "situation": "Her brother has stopped answering her letters.",
}


def test_a_card_in_free_text_is_played_by_no_script_and_says_what_it_lacks():
    card = PersonaCard.model_validate(IMPORTED)
    assert card.hidden_need is None and card.profile.startswith("Mara")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match=r"en-imported has no opening, facts, .*start_emotion"):
        card.script  # noqa: B018


def test_what_a_card_leaves_out_does_not_count_for_its_hash_and_what_it_adds_does():
    card = PersonaCard.model_validate(IMPORTED)
    assert card.hash == PersonaCard.model_validate(IMPORTED | {"need": None}).hash
    assert card.hash != PersonaCard.model_validate(IMPORTED | {"need": "To be asked."}).hash


def test_an_error_in_a_structured_profile_names_the_key_and_not_the_form():
    profile = raw()["profile"] | {"age": "old"}
    with pytest.raises(ValidationError) as caught:
        PersonaCard.model_validate(IMPORTED | {"profile": profile})
    assert describe_validation(caught.value, "card.yaml").startswith("card.yaml: profile.age: ")


def test_people_in_free_text_are_split_by_it_too():
    cards = [PersonaCard.model_validate(IMPORTED | {"id": f"en-{n}", "profile": f"Person {n % 6}"}) for n in range(12)]
    splits = assign_splits(cards)
    assert all(splits[f"en-{n}"] == splits[f"en-{n + 6}"] for n in range(6))
    assert set(splits.values()) == {"train", "dev", "test"}
