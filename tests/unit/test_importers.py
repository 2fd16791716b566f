"""Importing cards of other collections: what becomes of every field, and that nothing is lost in silence."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.card_files import card_yaml, save_cards
from envs.card_set import load_cards, persona_text
from envs.cards import HiddenNeed, PersonaCard, Temperament
from envs.errors import InputError
from envs.importers.card_map import MAPS_DIR, load_map
from envs.importers.convert import Imported, Origin, import_cards, language_of, parted
from envs.importers.rows import read_rows
from tests.unit.foreign_rows import CHARACTER, KARDIA, PATIENT, SAGE_ROW, imported, save
from tests.unit.recorded import NEED, RLVER, SAGE, line, needs_sage, save_lines


def nothing_is_lost(found: Imported, rows: list[dict[str, Any]]) -> None:
    """Each field counts for each row exactly once, but that a part of a mapped field may be left out besides."""
    for name, use in found.report.fields.items():
        told = use.mapped + use.noted + use.missing
        assert told + use.left_out == len(rows) or (use.mapped and told == len(rows)), name
    assert {name.split(".")[0] for name in found.report.fields} == {name for row in rows for name in row}


def test_a_sage_card_keeps_its_texts_and_maps_need_and_temperament(tmp_path):
    found = imported(tmp_path, "sage", [SAGE_ROW], split="test")
    [card] = found.cards
    assert (card.id, card.language, card.split) == ("zh-sage-ab-12-x", "zh", "test")
    assert (card.profile, card.situation, card.opening) == (
        SAGE_ROW["player"],
        SAGE_ROW["scene"],
        SAGE_ROW["first_talk"],
    )
    assert (card.hidden_need, card.need) == (HiddenNeed.NOT_AT_FAULT, SAGE_ROW["task"])
    assert card.temperament is Temperament.AVOIDANT
    assert card.notes == {"cha_group": "谨慎; 内向; 宽容"}
    assert (card.source, card.licence) == ("a made-up collection", "CC0-1.0")
    assert found.report.without == {"start_emotion": 1, "speech": 1}
    nothing_is_lost(found, [SAGE_ROW])


def test_the_eight_intentions_and_three_characters_of_sage_all_have_a_value():
    values = load_map("sage").values
    assert Counter(values["hidden_need"].values()) == Counter({need.value: 1 for need in HiddenNeed})
    assert set(values["temperament"].values()) == set(Temperament)
    assert load_map("rlver") == load_map("sage")


def test_what_stands_for_no_value_is_none_and_kept_and_told(tmp_path):
    row = SAGE_ROW | {"task": "你想借钱", "main_cha": "夜猫型", "mood": "blue", "age": None}
    found = imported(tmp_path, "sage", [row])
    [card] = found.cards
    assert (card.hidden_need, card.need, card.temperament) == (None, "你想借钱", None)
    assert card.notes == {"cha_group": "谨慎; 内向; 宽容", "main_cha": "夜猫型", "mood": "blue"}
    assert found.report.unknown_values == {"hidden_need": {"你想借钱": 1}, "temperament": {"夜猫型": 1}}
    assert found.report.fields["age"].missing == 1
    nothing_is_lost(found, [row])


def test_an_esc_eval_card_in_one_text_is_its_profile_and_its_problem_the_situation(tmp_path):
    text = (
        "Age: not mentioned\nGender: Female\nOccupation: lock keeper\nProblem: The lock closes.\nIt was her father's."
    )
    rows = [
        {"base": text, "language": "english", "id": 7, "res": "work"},
        {"base": "年龄：青年\n性别：男\n职业：学生\n问题：宿舍很吵，睡不着。", "language": "chinese", "id": 8},
        {"base": "Age: 40, Gender: male; Problem: His dog died. Detail: It was old.", "id": 9},
        {"base": "A man who lost his dog.", "id": 10},
    ]
    found = imported(tmp_path, "esc-eval", rows)
    english, chinese, in_a_line, unlabelled = found.cards
    assert (english.profile, english.situation) == (text, "The lock closes.\nIt was her father's.")
    assert (chinese.id, chinese.situation) == ("zh-esc-eval-8", "宿舍很吵，睡不着。")
    assert in_a_line.situation == "His dog died.\nIt was old."
    assert unlabelled.profile == unlabelled.situation == "A man who lost his dog."
    assert english.notes == {"res": "work"}
    nothing_is_lost(found, rows)


def test_an_esc_eval_card_may_have_its_fields_apart(tmp_path):
    row = {"Age": 25, "Gender": "male", "Occupation": "baker", "Problem": "Wakes at two.", "Detail": "The oven is old."}
    found = imported(tmp_path, "esc-eval", [row])
    [card] = found.cards
    assert card.profile == "Age: 25\nGender: male\nOccupation: baker\nProblem: Wakes at two."
    assert card.situation == "Wakes at two.\nThe oven is old."
    nothing_is_lost(found, [row])


def test_all_seventeen_fields_of_a_characterchat_profile_find_their_place(tmp_path):
    path = save_lines(tmp_path / "profiles.json", [CHARACTER])  # JSON lines under this name, as the collection has it
    found = import_cards(str(path), Origin(kind="characterchat", source="s", licence="CC0-1.0"))
    [card] = found.cards
    told = f"{card.profile}\n{card.situation}\n{card.speech}"
    assert [name for name, text in CHARACTER["profile"].items() if text not in told] == []
    assert card.id == "en-characterchat-istp-3" and "MBTI: ISTP" in str(card.profile)
    assert card.situation == "The new crane needs no driver.\nFeelings: Tired."
    assert card.speech == "Slow, with long pauses."
    assert card.notes == {"seeker_statement": "You are Bram."}
    assert found.report.fields["profile_trans"].left_out == 1
    assert len([name for name in found.report.fields if name.startswith("profile.")]) == 17
    flat = imported(tmp_path, "characterchat", [CHARACTER["profile"] | {"mbti": "ISTP", "index": 3}])
    assert (flat.cards[0].profile, flat.cards[0].situation) == (card.profile, card.situation)


def test_the_parts_of_a_cognitive_model_are_person_or_situation(tmp_path):
    rows = [
        PATIENT,
        PATIENT | {"id": "4-3", "situation": "The till is short.", "auto_thought": "They will think I took it."},
    ]
    found = imported(tmp_path, "patient-psi", rows)
    first, second = found.cards
    assert str(first.profile).splitlines() == [
        "Name: Oda",
        "History: Ran the ferry kiosk with her sister until the quay was closed.",
        "Believes to be helpless: I can't manage alone.; I am trapped.",
        "Rules of life: If I ask, I owe.",
        "Ways of coping: Counts the till twice.",
    ]
    assert str(first.situation).splitlines()[1:] == [
        "Thought: She would not come anyway.",
        "Feeling: sad, lonely",
        "What the person does: Turns the card to the wall.",
    ]
    assert persona_text(first) == persona_text(second)
    assert found.report.same_person == (("en-patient-psi-4-2", "en-patient-psi-4-3"),)
    assert found.report.fields["unlovable_belief"].missing == 2
    assert first.notes == {"type": "plain; reserved"}
    nothing_is_lost(found, rows)


def test_a_kardia_row_opens_with_the_first_words_of_its_person(tmp_path):
    rows = [KARDIA, KARDIA | {"situation": "The reed is cracked.", "messages": []}]
    found = imported(tmp_path, "kardia", rows)
    first, second = found.cards
    assert (first.opening, second.opening) == ("They sang on Friday. I heard it from the street.", None)
    assert first.situation == "The choir sang without me for the first time.\nFeeling: lonely"
    assert first.id.startswith("en-kardia-reed-17-") and first.id != second.id
    use = found.report.fields["messages"]
    assert (use.becomes, use.mapped, use.left_out, use.missing) == (("opening",), 1, 1, 1)
    nothing_is_lost(found, rows)
    turned = imported(tmp_path, "kardia", rows[::-1])
    assert {card.id: card for card in turned.cards} == {card.id: card for card in found.cards}


TABLE = 'who,story,feeling now,wish,town\n"Ine, 52",The mill was sold.,35,listening,Vik\nTor,,,money,Lom\n'


def test_a_table_is_mapped_by_its_columns_and_a_row_without_a_story_is_told(tmp_path):
    path = tmp_path / "Mill stories.csv"
    path.write_text("\ufeff" + TABLE, encoding="utf-8")
    told = Origin(kind="csv", source="s", licence="CC0-1.0", language="en")
    overrides = ["profile=who+town", "situation=story", "start_emotion=feeling now", "hidden_need=wish"]
    found = import_cards(str(path), told, overrides)
    [card] = found.cards
    assert (card.profile, card.situation) == ("who: Ine, 52\ntown: Vik", "The mill was sold.")
    assert (card.start_emotion, card.hidden_need) == (35, HiddenNeed.LISTENING)
    assert card.id.startswith("en-mill-stories-")
    [refused] = found.report.rejected
    assert refused.where == f"{path}:3" and "situation: is missing; add it" in refused.cause
    assert found.report.unknown_values == {"hidden_need": {"money": 1}}


def test_tables_and_lines_of_the_same_rows_give_the_same_cards(tmp_path):
    rows = [
        {"profile": "Ine", "situation": "The mill.", "id": "a"},
        {"profile": "Tor", "situation": "The boat.", "id": "b"},
    ]
    files = [tmp_path / f"t.{suffix}" for suffix in ("csv", "tsv", "jsonl", "json", "jsonl.gz")]
    for file, comma in zip(files[:2], ",\t", strict=True):
        lines = [comma.join(rows[0]), *(comma.join(row.values()) for row in rows)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_lines(files[2], rows)
    save(files[3], {row["id"]: row for row in rows})
    files[4].write_bytes(gzip.compress(files[2].read_bytes()))
    told = Origin(kind="table", source="s", licence="CC0-1.0")
    cards = [import_cards(str(file), told).cards for file in files]
    assert [card.id for card in cards[0]] == ["en-t-a", "en-t-b"]
    assert all(other == cards[0] for other in cards)


def test_a_local_dataset_and_a_parquet_file_are_read_with_all_their_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"profile": "Ine", "situation": "The mill.", "id": "a", "born": None}]
    one = datasets.Dataset.from_list(rows)
    one.to_parquet(str(tmp_path / "t.parquet"))
    both = {"train": one, "test": datasets.Dataset.from_list([rows[0] | {"id": "b"}])}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "t"))
    told = Origin(kind="table", source="s", licence="CC0-1.0")
    assert [card.id for card in import_cards(str(tmp_path / "t.parquet"), told).cards] == ["en-t-a"]
    found = import_cards(str(tmp_path / "t"), told)
    assert [card.id for card in found.cards] == ["en-t-a", "en-t-b"]
    assert found.report.fields["born"].missing == 2


def test_a_name_on_the_hub_is_asked_of_the_library_and_its_failure_is_bad_input(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        if name == "nobody/nothing":
            raise FileNotFoundError("no such dataset")
        return {"train": [{"profile": "Ine"}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row.data for row in read_rows("hf:some/cards")] == [{"profile": "Ine"}]
    with pytest.raises(InputError, match="hf:nobody/nothing: can't be loaded as a dataset: FileNotFoundError"):
        read_rows("hf:nobody/nothing")
    assert asked == ["some/cards", "nobody/nothing"]


def test_a_folder_that_is_no_dataset_is_refused_by_name(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: can't be loaded as a dataset"):
        read_rows(str(tmp_path / "empty"))


BROKEN = {
    "a.json": ("[{]", r"a\.json:1: is not valid JSON"),
    "b.json": ("[1]", r"b\.json, row 1: an object"),
    "c.jsonl": ('{"a": 1}\n{"b"\n', r"c\.jsonl:2: is not valid JSON"),
    "d.csv": ("a,b\n1,2,3\n", r"d\.csv:2: has more cells"),
    "e.json": ("3", r"e\.json: a list of objects"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path, name):
    content, said = BROKEN[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_rows(str(tmp_path / name))


def test_rows_of_the_same_id_are_told_apart_by_content_and_the_same_row_by_number(tmp_path):
    rows = [SAGE_ROW, SAGE_ROW | {"scene": "另一件事。"}, SAGE_ROW]
    found = imported(tmp_path, "sage", rows)
    ids = [card.id for card in found.cards]
    assert len(set(ids)) == 3 and ids[2] == f"{ids[0]}-2"
    assert all(name.startswith("zh-sage-ab-12-x-") for name in ids)
    assert [sorted(group) for group in found.report.same_person] == [sorted(ids)]


def test_fields_without_a_name_or_with_the_same_one_are_all_kept(tmp_path):
    row = {
        "profile": "Ine",
        "situation": "The mill.",
        "": "a",
        " ": "b",
        "Age": 52,
        "age ": "about fifty",
        "\ud800": "c",
    }
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    [card] = import_cards(str(path), Origin(kind="table", source="s", licence="CC0-1.0")).cards
    assert card.notes == {"(unnamed)": "a", "(unnamed)'": "b", "Age": "52", "age'": "about fifty", "?": "c"}
    save_cards([card], tmp_path / "out")
    assert load_cards([tmp_path / "out"]) == [card]


def test_a_language_that_nobody_speaks_here_refuses_the_row_unless_another_is_named(tmp_path):
    row = {"profile": "Ine", "situation": "Le moulin.", "language": "french"}
    found = imported(tmp_path, "table", [row])
    assert found.cards == [] and "language: Input should be 'en' or 'zh'" in found.report.rejected[0].cause
    assert imported(tmp_path, "table", [row], language="en").cards[0].language == "en"


def test_the_language_is_guessed_from_the_letters():
    assert language_of("她在镇上 (Oslo) 住了十年") == "zh"
    assert language_of("Her name is 林小禾 and she keeps bees above the village.") == "en"
    assert language_of("") == "en"


def test_kinds_keys_and_columns_that_are_unknown_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(InputError, match="kardla: there is no such kind of cards; did you mean 'kardia'"):
        load_map("kardla")
    with pytest.raises(InputError, match=r"--map profil=who: write key=column"):
        load_map("table", ["profil=who"])
    with pytest.raises(InputError, match=r"has no column 'whom'; it has profile, situation"):
        imported(tmp_path, "table", [{"profile": "a", "situation": "b"}], ("profile=whom",))


def test_a_map_of_ones_own_is_a_kind_too(tmp_path):
    own = {
        "kinds": ["mine"],
        "profile": [{"Name": "n"}, {"Town": ["t", "place"]}],
        "situation": "s",
        "leave_out": ["x"],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    rows = [{"n": "Ine", "place": "Vik", "s": "The mill.", "x": 3}]
    found = imported(tmp_path, str(tmp_path / "mine.yaml"), rows)
    assert found.cards[0].profile == "Name: Ine\nTown: Vik" and found.cards[0].notes is None
    assert found.report.fields["x"].left_out == 1
    assert found.cards[0].id.startswith("en-mine-")
    (tmp_path / "mine.yaml").write_text("kinds: [mine]\nprofil: n\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.yaml: profil: is not a known key"):
        load_map(str(tmp_path / "mine.yaml"))


def test_every_map_that_comes_with_attune_is_valid_and_its_kinds_are_unique():
    kinds = [kind for path in MAPS_DIR.glob("*.yaml") for kind in load_map(str(path)).kinds]
    assert len(kinds) == len(set(kinds)) >= 6


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60) | st.text(
    "a \n\t:#-|>'\"\\\x85\u2028é蜂🐝", max_size=30
)


@settings(max_examples=200, deadline=None)
@given(profile=texts, situation=texts, note=texts)
def test_any_text_of_a_card_comes_back_from_its_yaml(profile, situation, note):
    raw = {"id": "en-x", "language": "en", "split": "dev", "source": "s", "licence": "l", "notes": {"n": f"x{note}y"}}
    card = PersonaCard.model_validate(raw | {"profile": f"p{profile}", "situation": f"s{situation}."})
    assert PersonaCard.model_validate(yaml.safe_load(card_yaml(card))) == card


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(
    ["player", "scene", "task", "main_cha", "id", "messages", "person", "situation", "base", "mbti"]
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(fields | st.text(max_size=6), json_values, max_size=6), min_size=1, max_size=3),
    kind=st.sampled_from(["sage", "esc-eval", "characterchat", "patient-psi", "kardia", "table"]),
)
def test_any_row_becomes_a_card_or_a_reason_and_every_field_is_accounted_for(tmp_path_factory, rows, kind):
    found = imported(tmp_path_factory.mktemp("rows"), kind, rows)
    assert len(found.cards) + len(found.report.rejected) == found.report.rows == len(rows)
    assert len({card.id for card in found.cards}) == len(found.cards)
    for use in found.report.fields.values():
        assert use.mapped + use.noted + use.missing <= len(rows) <= use.mapped + use.noted + use.missing + use.left_out
    for card in found.cards:
        assert PersonaCard.model_validate(yaml.safe_load(card_yaml(card))) == card


def test_what_of_a_scene_tells_the_hidden_need_is_told_with_the_need_and_not_with_the_situation():
    scene = "背景\n她很累。\n经过\n一周前。\n# 根据隐藏主题的反应\n共情会让她好一些。\n####隐藏主题:\n***你希望对方共情"
    kept, told = parted(scene, "隐藏主题")
    assert kept == "背景\n她很累。\n经过\n一周前。"
    assert told == "# 根据隐藏主题的反应\n共情会让她好一些。\n####隐藏主题:\n***你希望对方共情"
    assert parted("隐藏主题：共情\n一\n二\n三\n四", "隐藏主题") == ("一\n二\n三\n四", "隐藏主题：共情")
    assert parted("没有标题", "隐藏主题") == ("没有标题", "")


@needs_sage
def test_no_imported_situation_tells_the_hidden_need():
    for file in (SAGE, RLVER):
        cards = import_cards(str(file), Origin(kind="sage", source="s", licence="MIT", split="train")).cards
        assert not [card.id for card in cards if "隐藏主题" in str(card.situation)]
        assert all(len(str(card.situation)) > 200 and "隐藏主题" in str(card.need) for card in cards)


def test_recordings_can_be_imported_as_the_cards_that_they_hold(tmp_path):
    found = imported(tmp_path, "sage", [line([5, 5])])
    [card] = found.cards
    assert (card.opening, card.need, card.temperament) == ("你好。", NEED, "passive")
    assert found.report.fields["history"].left_out == found.report.fields["history"].mapped == 1


def test_a_card_is_not_written_where_its_id_is_taken_in_another_file(tmp_path):
    [card] = imported(tmp_path, "sage", [SAGE_ROW]).cards
    save_cards([card], tmp_path / "out")
    (tmp_path / "out" / f"{card.id}.yaml").rename(tmp_path / "out" / "renamed.yaml")
    with pytest.raises(InputError, match=r"renamed\.yaml: there already"):
        save_cards([card], tmp_path / "out")


@needs_sage
def test_all_600_cards_of_sage_and_rlver_import_with_need_and_temperament_and_read_back_equal(tmp_path):
    sage = import_cards(str(SAGE), Origin(kind="sage", source="SAGE", licence="MIT", split="test"))
    rlver = import_cards(str(RLVER), Origin(kind="rlver", source="RLVER", licence="MIT"))
    assert (len(sage.cards), len(rlver.cards)) == (100, 500)
    for found in (sage, rlver):
        assert found.report.rejected == () and found.report.unknown_values == {}
        assert all(card.hidden_need and card.need and card.temperament for card in found.cards)
        assert all(use.mapped + use.noted == found.report.rows for use in found.report.fields.values())
    assert Counter(card.hidden_need for card in sage.cards)[HiddenNeed.REAL_ADVICE] == 15
    assert Counter(card.temperament for card in rlver.cards) == {"negative": 183, "passive": 174, "avoidant": 143}
    save_cards([*sage.cards, *rlver.cards[:100]], tmp_path / "out")
    read = {card.id: card for card in load_cards([tmp_path / "out"])}
    assert read == {card.id: card for card in [*sage.cards, *rlver.cards[:100]]}
    assert len(rlver.report.same_person) == 80
