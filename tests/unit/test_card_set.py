"""Sets of cards: near-duplicates are all found, and splits are written into files that stay as they are otherwise."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.card_files import card_yaml, planned_splits, save_texts, with_split
from envs.card_set import (
    NEAR,
    Crowd,
    _content,
    _folded,
    _shingles,
    alike,
    find_leaks,
    jaccard,
    load_cards,
    same_persons,
)
from envs.cards import CARDS_DIR, PersonaCard, load_card
from envs.errors import InputError
from envs.importers.convert import Origin, import_cards
from scripts import attune
from tests.unit.recorded import RLVER, SAGE, needs_sage

MODEL = CARDS_DIR / "en" / "bus-depot-letter.yaml"


def person(number: int, profile: str, situation: str = "The same story.", **more: str) -> PersonaCard:
    own = {"id": f"en-p{number}", "language": "en", "split": "train", "source": "a test", "licence": "CC0-1.0"}
    return PersonaCard.model_validate(own | {"profile": profile, "situation": situation} | more)


def compared_one_by_one(cards: list[PersonaCard], near: float) -> list[tuple[int, int, float]]:
    shingles = [_shingles(_folded(_content(card))) for card in cards]
    found = []
    for second in range(len(cards)):
        for first in range(second):
            if cards[first].language != cards[second].language:
                continue
            same = _folded(str(cards[first].profile)) == _folded(str(cards[second].profile))
            likeness = 1.0 if same else jaccard(shingles[first], shingles[second])
            if likeness >= near:
                found.append((first, second, likeness))
    return sorted(found)


@settings(max_examples=150, deadline=None)
@given(
    profiles=st.lists(st.text("abc ", max_size=14).map(lambda text: f"x{text}"), max_size=8),
    languages=st.lists(st.sampled_from(["en", "zh"]), min_size=8, max_size=8),
    near=st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
)
def test_no_pair_is_missed_that_comparing_one_by_one_would_find(profiles, languages, near):
    cards = [
        person(number, profile, "st", id=f"{language}-p{number}", language=language)
        for number, (profile, language) in enumerate(zip(profiles, languages, strict=False))
    ]
    assert alike(cards, near) == compared_one_by_one(cards, near)


def test_hundreds_of_long_cards_are_compared_within_seconds():
    dice, words = random.Random(0), [f"word{number}" for number in range(3000)]
    stories = [" ".join(dice.choices(words, k=300)) for _ in range(600)]
    cards = [person(number, f"Person {number}", story) for number, story in enumerate(stories)]
    cards.append(person(600, "Someone else", stories[17] + " and more."))
    began = time.process_time()
    assert [pair[:2] for pair in alike(cards)] == [(17, 600)]
    assert time.process_time() - began < 15


def test_the_cards_of_a_person_are_known_by_language_and_text_less_its_layout():
    cards = [
        person(0, "Ine, 52"),
        person(1, "Tor"),
        person(2, "* INE: 52!"),
        person(3, "Tor", id="zh-p3", language="zh"),
    ]
    assert [[card.id for card in group] for group in same_persons(cards)] == [
        ["en-p0", "en-p2"],
        ["en-p1"],
        ["zh-p3"],
    ]


def test_the_nearest_card_is_the_one_that_shares_the_most():
    card = load_card(MODEL)
    renamed = PersonaCard.model_validate(
        card.model_dump() | {"id": "en-x", "profile": card.model_dump()["profile"] | {"age": 57}}
    )
    nearest, likeness = Crowd(load_cards()).nearest(renamed)
    assert nearest == card and NEAR < likeness < 1
    assert Crowd().nearest(card) == (None, 0.0)
    assert Crowd([card]).nearest(person(0, "x", language="zh", id="zh-p0")) == (None, 0.0)
    assert Crowd([card]).free_id(card.id) == f"{card.id}-2"


def test_another_split_changes_one_word_of_a_file_and_keeps_comments_order_and_line_ends(tmp_path):
    text = MODEL.read_text(encoding="utf-8").replace("split: train", "split: 'train'  # by hand")
    file = tmp_path / "card.yaml"
    file.write_bytes(("# a comment: split: train\n" + text).replace("\n", "\r\n").encode())
    before, card = file.read_bytes(), load_card(file)
    save_texts({file: with_split(file, card, "dev")})
    assert file.read_bytes() == before.replace(b"split: 'train'  #", b"split: 'dev'  #")
    assert load_card(file) == card.model_copy(update={"split": "dev"})


@pytest.mark.parametrize("layout", ["flow", "twice"])
def test_a_split_that_can_not_be_changed_alone_is_refused_before_anything_is_written(tmp_path, layout):
    card = person(0, "Ine")
    text = json.dumps(card.model_dump(mode="json", exclude_none=True))
    if layout == "twice":  # once as the key, once within a text
        text = card_yaml(card).replace("profile: Ine", "profile: 'Ine\n\nsplit: train\n\nand so on'")
    file = tmp_path / "card.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"card\.yaml: write its split on a line of its own"):
        planned_splits({file: load_card(file)}, {card.id: "dev"})


def save(folder: Path, cards: list[PersonaCard]) -> list[str]:
    folder.mkdir()
    for card in cards:
        (folder / f"{card.id}.yaml").write_text("# kept\n" + card_yaml(card), encoding="utf-8")
    return [str(folder)]


def crowd_of(count: int) -> list[PersonaCard]:
    """Every person twice, in train and in test."""
    stories = [f"Story {number}: {'abcdefghij'[number % 10] * 9}" for number in range(count)]
    return [
        person(number, f"Person {number // 2}", stories[number], split="train" if number % 2 else "test")
        for number in range(count)
    ]


def test_the_split_command_moves_whole_people_and_a_second_run_changes_nothing(tmp_path, capsys):
    where = save(tmp_path / "cards", crowd_of(24))
    assert attune.main(["cards", "check", *where]) == 2
    assert "12 of 12 test cards tell of a person who stands in another split too" in capsys.readouterr().err
    before = {path: path.read_bytes() for path in (tmp_path / "cards").iterdir()}
    assert attune.main(["cards", "split", *where, "--by", "persona", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {path: path.read_bytes() for path in (tmp_path / "cards").iterdir()} == before
    assert attune.main(["cards", "split", *where, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done == planned | {"written": True} and done["leaks"] == []
    assert done["splits"] == {"train": 16, "dev": 4, "test": 4}
    assert attune.main(["cards", "check", *where]) == 0
    assert all(path.read_text(encoding="utf-8").startswith("# kept\nid:") for path in before)
    assert attune.main(["cards", "split", *where]) == 0
    assert "24 cards (16 train, 4 dev, 4 test); 0 changed" in capsys.readouterr().out


def test_the_split_command_tells_of_near_duplicates_that_it_leaves_apart(tmp_path, capsys):
    story = "The mill was sold on a Tuesday, and nobody told the miller until the new keys came by post."
    where = save(tmp_path / "cards", [person(number, f"P{number}", story) for number in range(12)])
    assert attune.main(["cards", "split", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["leaks"]


def test_an_unknown_way_to_split_is_refused(tmp_path, capsys):
    assert attune.main(["cards", "split", str(CARDS_DIR), "--by", "id", "--dry-run"]) == 2
    assert "--by: 'id' is none of its values; known: persona" in capsys.readouterr().err


@needs_sage
def test_the_54_test_cards_of_sage_that_share_their_person_with_rlver_are_all_named():
    sage = import_cards(str(SAGE), Origin(kind="sage", source="s", licence="MIT", split="test")).cards
    rlver = import_cards(str(RLVER), Origin(kind="rlver", source="s", licence="MIT")).cards
    began = time.process_time()
    leaks = find_leaks([*sage, *rlver])
    assert time.process_time() - began < 15
    assert len({leak.first.id for leak in leaks}) == 54 and len(leaks) == 82
    assert {(leak.first.split, leak.second.split, leak.likeness) for leak in leaks} == {("test", "train", 1.0)}
