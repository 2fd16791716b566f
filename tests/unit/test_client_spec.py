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
