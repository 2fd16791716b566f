"""Rubrics: every shipped one is whole in both languages, and a bad file is refused with line and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.errors import InputError
from rewards.rubric import RUBRICS_DIR, Rubric, load_rubric

SHIPPED = {
    "kardia": ("dialogue", 1, 5, ["relevance", "empathy", "persona_consistency", "safety", "fluency"]),
    "mentalalign": (
        "turn", 1, 5,
        ["guidance", "informativeness", "relevance", "safety", "empathy", "helpfulness", "understanding"],
    ),
    "esc-eval": (
        "dialogue", 0, 4,
        ["fluency", "expression", "empathy", "information", "skillfulness", "humanoid", "overall"],
    ),
    "motivational-interviewing": (
        "dialogue", 1, 5, ["change_talk", "sustain_talk", "partnership", "empathy", "autonomy"]
    ),
    "dear-man": (
        "dialogue", 0, 2,
        ["describe", "express", "assert", "reinforce", "mindful", "appear_confident", "negotiate"],
    ),
    "attribution": ("turn", 0, 3, ["contribution"]),
}  # fmt: skip

GOOD = """\
name: mine
title: A rubric of one axis
scope: turn
languages: [en, zh]
scale: {low: 1, high: 2}
sources: [made up]
axes:
  - name: warmth
    weight: 2
    question: {en: "Is it warm?", zh: 温暖吗？}
    levels:
      1: {en: It is cold., zh: 冷。}
      2: {en: It is warm., zh: 暖。}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_shipped_rubrics_are_these():
    assert {path.stem for path in RUBRICS_DIR.iterdir()} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_rubric_has_its_axes_with_a_text_for_each_level_in_english_and_chinese(name: str):
    rubric = load_rubric(name)
    scope, low, high, axes = SHIPPED[name]
    assert (rubric.name, rubric.scope, rubric.scale.low, rubric.scale.high) == (name, scope, low, high)
    assert [axis.name for axis in rubric.axes] == axes
    assert rubric.languages == ("en", "zh")
    for axis in rubric.axes:
        assert sorted(axis.levels) == list(range(low, high + 1))
        for text in (axis.question, *axis.levels.values()):
            assert set(text) == {"en", "zh"}
            assert text["en"].isascii() and not text["zh"].isascii()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_rubric_says_where_its_axes_come_from(name: str):
    sources = " ".join(load_rubric(name).sources)
    assert "arXiv" in sources or "doi:" in sources


def test_a_rubric_is_read_from_a_path_and_hashed_over_its_content(tmp_path: Path):
    rubric = load_rubric(written(tmp_path, GOOD))
    assert rubric.hash == load_rubric(written(tmp_path, GOOD + "# a remark\n")).hash
    assert rubric.hash != load_rubric(written(tmp_path, GOOD.replace("It is cold", "It's cold"))).hash
    assert rubric.axis("warmth").weight == 2


def test_a_level_is_a_share_of_the_scale():
    rubric = load_rubric("kardia")
    assert [rubric.unit(level) for level in (1, 2, 5)] == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (("weight: 2", "wieght: 2"), 9, "axes.0.wieght: is not a known key; did you mean 'weight'?"),
        (("weight: 2", "weight: -1"), 9, "axes.0.weight: Input should be greater than or equal to 0"),
        (("weight: 2", "weight: .nan"), 9, "axes.0.weight"),
        (("weight: 2", "weight: 0"), 7, "axes: every axis has weight 0"),
        (("scope: turn", "scope: dialog"), 3, "did you mean 'dialogue'?"),
        (("title: A rubric of one axis\n", ""), 1, "title: is missing; add it"),
        (("  1: {en: It is cold., zh: 冷。}\n", ""), 11, "axes.0.levels: level 1 has no text; add it"),
        (("2: {en", "3: {en"), 13, "axes.0.levels.3: is not on the scale 1 to 2; remove it"),
        (("zh: 冷。", "zh: ''"), 12, "axes.0.levels.1.zh: String should have at least 1 character"),
        ((", zh: 冷。", ""), 12, "axes.0.levels.1: lacks the language zh; add it"),
        (("zh: 冷。", "fr: froid"), 12, "axes.0.levels.1.fr"),
        (("[en, zh]", "[en]"), 10, "axes.0.question.zh: is not among the rubric's languages"),
        (("It is warm.", "It is cold."), 13, "axes.0.levels.2.en: reads like level 1"),
        (("low: 1", "low: 2"), 5, "scale: low 2 and high 2 must leave 2 to 11 levels"),
        (("name: warmth", "name: Warmth"), 8, "axes.0.name"),
        (("title: A", "title: [A"), 3, "is not valid YAML"),
        (("title: A", "scope: turn\ntitle: A"), 4, "scope: stands twice; remove one"),
        (("    weight: 2", "\tweight: 2"), 9, "is not valid YAML"),
        (("low: 1", "low: true"), 5, "scale.low"),
        (("low: 1", "low: [1]"), 5, "scale.low"),
        (("weight: 2", "[a]: 2"), 9, "is not valid YAML"),
        (("  1: {en: It is cold., zh: 冷。}", "  1: &a {en: *a}"), 12, "axes.0.levels.1.en"),
    ],
)
def test_a_bad_rubric_is_refused_with_file_line_and_reason(
    tmp_path: Path, change: tuple[str, str], line: int, said: str
):
    assert change[0] in GOOD
    path = written(tmp_path, GOOD.replace(*change))
    with pytest.raises(InputError) as error:
        load_rubric(path)
    first = next(text for text in str(error.value).splitlines() if said in text)
    assert first.startswith(f"{path}:{line}: "), str(error.value)


def test_every_problem_is_told_at_once(tmp_path: Path):
    axis = GOOD[GOOD.index("  - name") :]
    with pytest.raises(InputError) as error:
        load_rubric(written(tmp_path, GOOD + axis.replace("zh: 冷。", "zh: 暖。")))
    told = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in told] == ["axes.1.levels.2.zh", "axes.1.name"]
    assert [line.split(": ")[0].split(":")[1] for line in told] == ["19", "14"]


def test_a_file_that_is_no_mapping_or_no_text_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"mine.yaml:1: must be a mapping"):
        load_rubric(written(tmp_path, "- a list\n"))
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read as YAML"):
        load_rubric(str(tmp_path / "mine.yaml"))
    with pytest.raises(InputError, match=r"mine.yaml:1: must be a mapping"):
        load_rubric(written(tmp_path, ""))
    with pytest.raises(InputError, match="can't be read as YAML"):
        load_rubric(written(tmp_path, GOOD.replace("low: 1", f"low: {'1' * 5000}")))


def test_an_unknown_rubric_or_axis_names_the_likeliest():
    with pytest.raises(InputError, match="did you mean 'kardia'"):
        load_rubric("cardia")
    with pytest.raises(InputError, match="did you mean 'empathy'"):
        load_rubric("kardia").axis("empaty")


def test_a_rubric_made_in_code_is_held_to_the_same():
    data = load_rubric("dear-man").model_dump()
    del data["axes"][0]["levels"][1]
    with pytest.raises(ValueError, match=r"axes.0.levels: level 1 has no text"):
        Rubric.model_validate(data)
