"""Fixtures of the gates: well formed, balanced, split. Failures show ids and counts: the sealed parts stay unread."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from itertools import product
from typing import get_args

import pytest
from pydantic import ValidationError

from tests.unit.gate_fixtures import FOLDER, GATES, Fixture, Part, load

PARTS: tuple[Part, ...] = get_args(Part)
SEALED = PARTS[1:]
LANGUAGES = ("en", "zh")
STRATA = list(product(GATES, LANGUAGES))
FIXTURES: dict[Part, list[Fixture]] = {part: load(part) for part in PARTS}
FIRST = FIXTURES["open"] + FIXTURES["sealed"]
SECOND = FIXTURES["sealed_second"]
ALL = FIRST + SECOND
TACTICS = {
    "en": {
        "charm", "pleasure induction", "superiority", "urgency", "guilt trip", "gaslighting",
        "denial", "justification", "fabrication", "diversion", "feigned innocence",
    },
    "zh": {
        "魅力讨好", "愉悦诱导", "高人一等", "制造紧迫", "内疚绑架", "煤气灯",
        "抵赖", "合理化", "编造", "转移", "装无辜",
    },
}  # fmt: skip
GOOD = {
    "id": "crisis-en-01",
    "gate": "crisis",
    "language": "en",
    "messages": [{"speaker": "client", "text": "Hello."}, {"speaker": "supporter", "text": "Hello to you."}],
    "turn": 0,
    "closed": False,
    "why": "no risk",
}


def stratum(gate: str, language: str, fixtures: Iterable[Fixture] = ALL) -> list[Fixture]:
    return [fixture for fixture in fixtures if (fixture.gate, fixture.language) == (gate, language)]


def plain(text: str) -> str:
    """The letters and digits of a text, so that copies which differ in case or punctuation are the same."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def shared(keyed: Iterable[tuple[str, Hashable]]) -> list[list[str]]:
    """The groups of ids that have the same key."""
    ids: defaultdict[Hashable, list[str]] = defaultdict(list)
    for name, key in keyed:
        ids[key].append(name)
    return [names for names in ids.values() if len(names) > 1]


def tactic(fixture: Fixture) -> str:
    """The tactic that the reason of a manipulation fixture begins with."""
    return re.split(r"[:：,]", fixture.why.removeprefix("近似"))[0]


def test_a_fixture_is_read_as_it_is_written() -> None:
    assert Fixture.model_validate(GOOD).reply == "Hello to you."


@pytest.mark.parametrize(
    "fault",
    [
        {"gate": "medical"},
        {"language": "fr"},
        {"turn": 1},
        {"turn": -1},
        {"why": ""},
        {"closed": None},
        {"note": "more"},
        {"messages": GOOD["messages"][:1]},
        {"messages": GOOD["messages"][::-1]},
        {"messages": [GOOD["messages"][0], {"speaker": "supporter", "text": " "}]},
    ],
)
def test_a_faulty_fixture_is_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Fixture.model_validate(GOOD | fault)


@pytest.mark.parametrize(("gate", "language"), STRATA)
def test_every_gate_has_at_least_thirty_first_fixtures_in_each_language(gate: str, language: str) -> None:
    count = len(stratum(gate, language, FIRST))
    assert count >= 30


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("gate", "language"), STRATA)
def test_half_of_the_fixtures_are_near_misses(gate: str, language: str, part: Part) -> None:
    passes = [not fixture.closed for fixture in stratum(gate, language, FIXTURES[part])]
    assert 0.4 <= sum(passes) / len(passes) <= 0.6


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("gate", "language"), STRATA)
def test_a_third_of_each_label_of_the_first_fixtures_is_sealed(gate: str, language: str, closed: bool) -> None:
    counts = {
        part: sum(fixture.closed is closed for fixture in stratum(gate, language, FIXTURES[part])) for part in PARTS
    }
    # Fifteen and more a label: a third, to the nearest fixture.
    assert abs(counts["sealed"] - (counts["open"] + counts["sealed"]) / 3) < 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_second_sealed_set_has_each_tactic_once_with_each_label(language: str) -> None:
    found = Counter((tactic(fixture), fixture.closed) for fixture in stratum("manipulation", language, SECOND))
    assert found == Counter(product(TACTICS[language], (True, False)))


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("gate", "language"), STRATA)
def test_the_second_sealed_set_has_the_same_count_of_each_label(gate: str, language: str, closed: bool) -> None:
    count = sum(fixture.closed is closed for fixture in stratum(gate, language, SECOND))
    assert count == (len(TACTICS[language]) if gate == "manipulation" else 10)


@pytest.mark.parametrize("part", SEALED)
def test_the_rules_quote_nothing_that_only_a_sealed_part_says(part: Part) -> None:
    said = {one: "\n".join(plain(m.text) for f in FIXTURES[one] for m in f.messages) for one in PARTS}
    phrases = re.findall(r'"([^"]+)"', (FOLDER / "README.md").read_text(encoding="utf-8"))
    leaked = [phrase for phrase in phrases if plain(phrase) in said[part] and plain(phrase) not in said["open"]]
    assert len(phrases) > 10
    assert leaked == []


def test_ids_are_used_once() -> None:
    assert [name for name, count in Counter(fixture.id for fixture in ALL).items() if count > 1] == []


def test_no_dialogue_and_no_judged_reply_comes_twice() -> None:
    assert shared((fixture.id, tuple(plain(message.text) for message in fixture.messages)) for fixture in ALL) == []
    assert shared((fixture.id, plain(fixture.reply)) for fixture in ALL) == []


def test_a_copy_with_other_punctuation_is_seen() -> None:
    assert shared([("a", plain("I hear you.")), ("b", plain("i hear you")), ("c", plain("I hear."))]) == [["a", "b"]]


def test_the_text_is_in_the_language_that_it_names() -> None:
    han = {fixture.id: re.search(r"[\u4e00-\u9fff]", "".join(m.text for m in fixture.messages)) for fixture in ALL}
    assert [fixture.id for fixture in ALL if (fixture.language == "zh") != bool(han[fixture.id])] == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_of_the_eleven_tactics_is_there(language: str, closed: bool, part: Part) -> None:
    tactics = {tactic(f) for f in stratum("manipulation", language, FIXTURES[part]) if f.closed is closed}
    assert tactics == TACTICS[language]


@pytest.mark.parametrize("fixtures", [FIRST, SECOND], ids=["first", "second"])
def test_some_judged_replies_are_not_the_first_and_some_not_the_last(fixtures: list[Fixture]) -> None:
    late = [(f.closed, f.language) for f in fixtures if f.turn > 0]
    early = [(f.closed, f.language) for f in fixtures if f.turn < len(f.messages) // 2 - 1]
    assert set(late) == set(early) == set(product((True, False), LANGUAGES))
