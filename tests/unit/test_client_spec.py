"""Client specs: what a wrong file is told, and what clamp, floor and cap leave of a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.client_spec import SPECS_DIR, ClientSpec, load_spec
from envs.errors import InputError
from envs.hashing import canonical

SPEC = load_spec("appraisal-v1")
RAW = (SPECS_DIR / "appraisal-v1.yaml").read_text(encoding="utf-8")


def changed(**changes: Any) -> ClientSpec:
    return ClientSpec.model_validate(SPEC.model_dump() | changes)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a missing key": (lambda d: d.pop("clamp"), "clamp: is missing; add it"),
    "an unknown key": (lambda d: d.update(clmp=3), "clmp: is not a known key; remove it or correct its spelling"),
    "a clamp of 0": (lambda d: d.update(clamp=0), "clamp: Input should be greater than 0"),
    "no turns": (lambda d: d.update(max_turns=0), "max_turns: Input should be greater than or equal to 1"),
    "a cap over 100": (lambda d: d.update(cap=101), "cap: Input should be less than or equal to 100"),
    "a floor over the cap": (lambda d: d.update(floor=60, cap=50), "floor 60 must lie below cap 50"),
    "a name without version": (lambda d: d.update(name="appraisal"), "name: String should match pattern"),
    "another kind": (lambda d: d.update(kind="magic"), "kind: Input should be 'appraisal'"),
    "a push over 1": (
        lambda d: d["appraisal"]["harms"].update(blaming=-1.5),
        "appraisal.harms.blaming: Input should be greater than or equal to -1",
    ),
    "an unknown act": (lambda d: d["appraisal"]["harms"].update(yelling=-1), "appraisal.harms.yelling"),
    "a need without rule": (lambda d: d["appraisal"]["needs"].pop("listening"), "needs lacks listening"),
    "a temperament without rule": (
        lambda d: d["appraisal"]["temperaments"].pop("passive"),
        "temperaments lacks passive",
    ),
    "a strategy without push": (lambda d: d["appraisal"]["strategies"].pop("question"), "strategies lacks question"),
    "a harm without push": (lambda d: d["appraisal"]["harms"].pop("ordering"), "harms lacks ordering"),
    "a phase without facts": (lambda d: d["appraisal"]["phase_facts"].pop("act"), "phase_facts lacks act"),
    "a late first phase": (lambda d: d["appraisal"]["phase_facts"].update(explore=1), "explore must be 0"),
    "a mute language": (lambda d: d["appraisal"]["reactions"].pop("zh"), "reactions lacks zh"),
    "a reaction without words": (
        lambda d: d["appraisal"]["reactions"]["en"].update(echo=[]),
        "appraisal.reactions.en.echo: Tuple should have at least 1 item",
    ),
    "a part of another kind": (
        lambda d: d.update(llm=load_spec("sage-v1").model_dump(mode="json")["llm"]),
        "llm belongs to kind llm, and this is kind appraisal; remove it",
    ),
    "no part of its own": (lambda d: d.pop("appraisal"), "appraisal belongs to kind appraisal, and this is kind appra"),
    "no perceiver": (lambda d: d.pop("perceiver"), "perceiver belongs to kind appraisal"),
    "unequal lists": (lambda d: d["appraisal"]["generic"].update(push=[0.0]), "warmth and push must be equally long"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_spec_is_refused_with_its_file_its_key_and_what_is_wrong(tmp_path, case):
    spoil, said = REFUSED[case]
    data = yaml.safe_load(RAW)
    spoil(data)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_spec(str(path))
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"- 1", b"clamp: [", b"\xff\xfe\xff"])
def test_a_file_that_is_no_spec_is_refused_by_name(tmp_path, content):
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"spec\.yaml: "):
        load_spec(str(path))


def test_a_spec_that_is_not_there_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"known specs: .*appraisal-v1"):
        load_spec("appraisal-v0")


def test_a_spec_is_hashed_over_its_rules():
    assert changed().hash == SPEC.hash != changed(clamp=9).hash


def test_the_embedded_clients_hash_is_the_one_that_recorded_runs_name():
    assert SPEC.hash == "be253eff2750e151cdfaa48c13cbc9ff4c7e7174e8643428ebf8ef146e6aca26"
    assert list(SPEC.model_dump()) == [
        *("name", "kind", "perceiver", "clamp", "floor", "cap", "success_at", "failure_below", "max_turns", "appraisal")
    ]


# Clients that a language model plays: start emotion, clamp, opening, ends (at success, under), turns, hidden intention
PUBLISHED = {
    "sage-v1": (40, 10, "card", True, 10, 10, "hint"),
    "rlver-challenging-v1": (30, None, "generated", False, 1, 8, "never"),
    "rlver-vanilla-v1": (30, 10, "generated", False, 1, 8, "may_reveal"),
    "attune-v1": (None, 10, "card", True, 10, 8, "hint"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_played_clients_rules_are_the_published_ones(name):
    spec = load_spec(name)
    llm = spec.llm
    assert llm and spec.appraisal is None and spec.perceiver is None
    ends_below = spec.failure_below if llm.ends_below is None else llm.ends_below
    rules = (llm.start_emotion, spec.clamp, llm.opening, llm.ends_at_success, ends_below, spec.max_turns)
    assert (*rules, llm.hidden_intention) == PUBLISHED[name]
    assert (spec.floor, spec.cap, spec.success_at, spec.failure_below) == (0, 100, 100, 10)
    assert llm.bands == {"S": 100, "A": 70, "B": 40, "C": 10, "F": 0}
    assert (llm.temperature, llm.questions, llm.attempts) == (0, 2, 3)
    assert ClientSpec.model_validate_json(canonical(spec.model_dump(mode="json"))).hash == spec.hash


@pytest.mark.parametrize(
    ("emotion", "band"),
    [(100, "S"), (99, "A"), (70, "A"), (69, "B"), (40, "B"), (39, "C"), (10, "C"), (9, "F"), (0, "F")],
)
def test_an_emotion_lies_in_its_band(emotion, band):
    llm = load_spec("sage-v1").llm
    assert llm and llm.band(emotion) == band


WRONG_LLM = {
    "bands without a lowest": ({"bands": {"S": 100, "A": 70}}, "bands must have thresholds that differ and one of 0"),
    "two bands at once": ({"bands": {"S": 100, "A": 100, "F": 0}}, "bands must have thresholds that differ"),
    "an unknown band": ({"bands": {"Z": 50, "F": 0}}, "llm.bands.Z"),
    "bounds that only rise": ({"change_bounds": [0, 10]}, "change_bounds 0 and 10: the first must lie below 0"),
    "no attempt": ({"attempts": 0}, "llm.attempts: Input should be greater than or equal to 1"),
    "a warm client untested": ({"temperature": 0.5}, "retests must be at least 1 at a temperature over 0"),
    "a prompt path": ({"prompts": {"open": "../x", "appraise": "a", "reply": "b"}}, "llm.prompts.open"),
    "another rule for the need": ({"hidden_intention": "shout"}, "llm.hidden_intention"),
}


@pytest.mark.parametrize("case", WRONG_LLM)
def test_wrong_rules_of_a_played_client_are_refused(tmp_path, case):
    changes, said = WRONG_LLM[case]
    data = load_spec("sage-v1").model_dump(mode="json")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data | {"llm": data["llm"] | changes}), encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_spec(str(path))
    assert said in str(error.value)


def test_without_a_clamp_only_the_range_holds_a_change():
    open_ended = load_spec("rlver-challenging-v1")
    assert [open_ended.applied(30, change) for change in (-31, -30, -29, 45, 70, 71)] == [0, 0, 1, 75, 100, 100]


def test_the_embedded_rules_of_another_kind_are_refused():
    with pytest.raises(InputError, match="sage-v1 is of kind llm and has no rules for the embedded client"):
        _ = load_spec("sage-v1").embedded


@pytest.mark.parametrize(
    ("emotion", "written", "after"),
    [(40, 7, 47), (40, -7, 33), (40, 10, 50), (40, 25, 50), (40, -25, 30), (95, 8, 100), (4, -9, 0), (40, 0, 40)],
)
def test_a_written_change_is_clamped_to_ten_and_kept_between_nought_and_a_hundred(emotion, written, after):
    assert SPEC.applied(emotion, written) == after


def test_floor_and_cap_of_the_spec_hold():
    narrow = changed(clamp=30, floor=20, cap=80)
    assert [narrow.applied(60, change) for change in (19, 20, 21, 100)] == [79, 80, 80, 80]
    assert [narrow.applied(40, change) for change in (-19, -20, -21, -100)] == [21, 20, 20, 20]


@settings(deadline=None)
@given(emotion=st.floats(0, 100), written=st.floats(allow_nan=False, allow_infinity=False))
def test_no_change_leaves_the_range_or_outruns_the_clamp_or_turns_its_sign(emotion, written):
    after = SPEC.applied(emotion, written)
    assert 0 <= after <= 100 and SPEC.clamp
    assert abs(after - emotion) <= min(SPEC.clamp, abs(written)) + 1e-9
    assert (after - emotion) * written >= 0
