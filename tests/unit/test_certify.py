"""Certifying a judge: files that are read or refused, verdicts, and what MentalBench publishes."""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from envs.errors import InputError
from rewards.certify import (
    Audit,
    AxisReport,
    Coefficient,
    Settings,
    audit,
    excluded_responders,
    judge_names,
    own_responders,
)
from rewards.ratings import Columns, Ratings, read_ratings

SHARED = Path(os.environ.get("ATTUNE_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
REAL = SHARED / "data" / "mentalalign"
JUDGES = ("claude", "gpt-4o", "gemini", "o4-mini")
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"MentalAlign's ratings are not at {REAL}; set ATTUNE_SHARED")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def files(folder: Path, human: str, judge: str) -> tuple[Path, Path]:
    return write(folder / "human.csv", human), write(folder / "judge.csv", judge)


HUMAN = "conversation_id,responder,empathy,note\n1,a,1,x\n1,b,2,\n2,a,3,y\n2,b,\n".replace("2,b,\n", "2,b,,\n")
JUDGE = "Conversation ID,Model,Warm Words\n2,a,4\n1,b,3\n1,a,2\n3,a,5\n"


def test_columns_are_found_by_their_names_and_rows_laid_side_by_side(tmp_path: Path):
    human, judge = files(tmp_path, HUMAN.replace("responder", "model"), JUDGE)
    found = read_ratings(human, judge, Columns(renamed={"Warm Words": "empathy"}))
    assert (found.axes, found.conversations, found.responders) == (("empathy",), ("1", "1", "2"), ("a", "b", "a"))
    assert found.human.tolist() == [[1], [2], [3]] and found.judge.tolist() == [[2], [3], [4]]
    assert (found.unmatched, found.ignored) == (2, ("note",))


def test_without_a_responder_a_conversation_has_one_response(tmp_path: Path):
    human, judge = files(tmp_path, "id,warmth\n1,2\n2,3\n", "id,warmth\n1,2\n2,\n")
    found = read_ratings(human, judge, Columns())
    assert found.responders is None and found.conversations == ("1", "2")
    assert np.isnan(found.judge[1, 0])


@pytest.mark.parametrize(
    ("human", "judge", "said"),
    [
        ("id,warmth\n1,2\n", "id,warmth\n1,2,3\n", r"judge.csv:2: has 3 cells, the header has 2"),
        ("id,warmth\n1,2\n1,3\n", "id,warmth\n1,2\n", r"human.csv:3: '1' is rated twice.*--responder"),
        ("id,warmth\n1,2\n2,good\n3,1\n", "id,warmth\n1,2\n", r"human.csv:3: warmth: 'good' is not a number"),
        ("id,warmth\n1,2\n", "id,warmth\n1,2\n2,nan\n3,1\n", r"judge.csv:3: warmth: 'nan' is not a number"),
        ("id,warmth\n1,2\n", "id,warmth\n1,2\n2,1e309\n3,1\n", r"judge.csv:3: warmth: '1e309'"),
        ("id,warmth\n1,2\n", "id,warmth\n1,2\n2,５\n3,1\n", r"judge.csv:3: warmth: '５'"),
        ("id,warmth\n1,2\n", "id,coldness\n1,2\n", r"shares no column of numbers.*--map"),
        ("id,warmth\n1,2\n", "id,warmth\n7,2\n", r"rates none of the responses.*'7'.*'1'"),
        ("who,warmth\n1,2\n", "who,warmth\n1,2\n", r"no column tells the conversations.*--items"),
        ("id,warmth,Warmth\n1,2,3\n", "id,warmth\n1,2\n", r"human.csv:1: two columns are called 'warmth'"),
        ("id,warmth\n", "id,warmth\n1,2\n", r"human.csv: has no rows"),
        ("", "id,warmth\n1,2\n", r"human.csv: has no rows"),
    ],
)
def test_a_file_that_cant_be_compared_is_refused_with_its_line_and_the_remedy(
    tmp_path: Path, human: str, judge: str, said: str
):
    with pytest.raises(InputError, match=said):
        read_ratings(*files(tmp_path, human, judge), Columns())


def test_a_column_that_is_named_and_not_there_is_refused_with_the_likeliest(tmp_path: Path):
    human, judge = files(tmp_path, "talk,warmth\n1,2\n", "talk,warmth\n1,2\n")
    with pytest.raises(InputError, match="did you mean 'talk'"):
        read_ratings(human, judge, Columns(conversation="talks"))
    with pytest.raises(InputError, match=r"no column for the axis 'warmt'; did you mean 'warmth'"):
        read_ratings(human, judge, Columns("talk"), ["warmt"])
    with pytest.raises(InputError, match="--map names the column 'cold'"):
        read_ratings(human, judge, Columns("talk", renamed={"cold": "warmth"}))
    with pytest.raises(InputError, match="there is no such file"):
        read_ratings(tmp_path / "none.csv", judge, Columns("talk"))


def made(human: np.ndarray, judge: np.ndarray, responders: int = 6) -> Ratings:
    """Ratings of conversations with ``responders`` responses each, (N, A)."""
    count = len(human)
    return Ratings(
        axes=tuple("abcdefg"[: human.shape[1]]),
        human=human.astype(float),
        judge=judge.astype(float),
        conversations=tuple(str(at // responders) for at in range(count)),
        responders=tuple(f"r{at % responders}" for at in range(count)),
        unmatched=0,
        ignored=(),
    )


def noisy(noise: float, seed: int = 0, count: int = 600) -> Ratings:
    """People and a judge that follows them with so much noise, on a scale from 1 to 5."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(size=count) + np.arange(count) % 6 / 2
    human, judge = (
        np.clip(np.round(quality + generator.normal(size=count) * scale + 2), 1, 5)[:, None] for scale in (0.3, noise)
    )
    return made(human, judge)


def only(found: Audit) -> AxisReport:
    (axis,) = found.axes
    return axis


def test_a_judge_that_follows_people_passes():
    axis = only(audit(noisy(0.3), Settings(resamples=200)))
    assert (axis.verdict, axis.passes, axis.refused_for) == ("good", True, ())
    assert axis.item.icc_c1.value is not None and axis.item.icc_c1.value > 0.8


def test_a_judge_that_is_right_only_over_means_is_refused():
    axis = only(audit(noisy(2.5, count=6000), Settings(resamples=200)))
    assert axis.icc_c1.value is not None and axis.icc_c1.value > 0.8
    assert not axis.passes and "over single responses" in axis.refused_for[-1]


def test_a_judge_that_rates_by_chance_is_refused():
    ratings = noisy(0.3)
    shuffled = np.random.default_rng(1).permutation(ratings.judge)
    assert not only(audit(made(ratings.human, shuffled), Settings(resamples=200))).passes


def test_a_judge_that_says_the_same_of_all_is_refused_with_nothing_made_up():
    human = np.array([[1], [2], [3], [4], [5], [3]] * 20)
    axis = only(audit(made(human, np.full_like(human, 5)), Settings(resamples=200)))
    assert (axis.item.icc_c1.value, axis.ties, axis.inversions, axis.passes) == (0, 1, 0, False)
    alike = only(audit(made(np.full_like(human, 5), np.full_like(human, 5)), Settings(resamples=200)))
    assert (alike.icc_c1.value, alike.item.icc_c1.ci95, alike.ties, alike.verdict) == (None, None, None, None)
    assert not alike.passes and len(alike.refused_for) == 2


def test_without_responders_the_reliability_over_them_is_none_and_the_axis_refused():
    ratings = noisy(0.1)
    alone = Ratings(ratings.axes, ratings.human, ratings.judge, ratings.conversations, None, 0, ())
    axis = only(audit(alone, Settings(resamples=200)))
    assert (axis.icc_c1.value, axis.icc_c1.ci95, axis.verdict, axis.passes) == (None, None, None, False)
    assert axis.item.icc_c1.ci95 is not None and axis.item.icc_c1.ci95_responders is None


def test_luck_on_a_few_items_does_not_pass():
    few = noisy(1.5, seed=2, count=18)
    axis = only(audit(few, Settings(resamples=400)))
    assert axis.item.icc_c1.value is not None and axis.item.icc_c1.ci95 is not None
    assert axis.verdict == "good" and axis.item.icc_c1.value > 0.6
    assert axis.item.icc_c1.ci95[0] < 0.4 and not axis.passes


def test_bias_inflation_and_pairs_are_what_a_hand_counts():
    human, judge = np.array([[1], [3], [5], [2], [2], [4]]), np.array([[2], [5], [5], [5], [4], [3]])
    axis = only(audit(made(human, judge, responders=3), Settings(resamples=100, low=1, high=5)))
    assert axis.bias == pytest.approx(7 / 6, abs=1e-6)  # 1 + 2 + 0 + 3 + 2 - 1 = 7
    assert (axis.inflation.judge_at_top, axis.inflation.human_at_top) == (0.5, pytest.approx(1 / 6, abs=1e-6))
    # Conversation 0: 1<3 right, 1<5 right, 3<5 tied. Conversation 1: 2=2 unordered, 2<4 inverted twice (5>3, 4>3).
    assert (axis.pairs, axis.ties, axis.inversions) == (5, 0.2, 0.4)


def test_missing_ratings_are_left_out_and_counted_and_the_rest_is_untouched():
    whole = noisy(0.3)
    human, judge = whole.human.copy(), whole.judge.copy()
    human[0, 0], judge[7, 0] = np.nan, np.nan
    found = audit(made(human, judge), Settings(resamples=100))
    assert (found.responses, found.used, found.incomplete) == (600, 598, 2)
    assert (only(found).missing_human, only(found).missing_judge) == (1, 1)
    kept = [at for at in range(600) if at not in (0, 7)]
    pairs = np.stack([human[kept, 0], judge[kept, 0]])
    assert only(found).bias == pytest.approx((pairs[1] - pairs[0]).mean(), abs=1e-6)


def test_ratings_off_the_scale_are_missing_where_the_scale_is_known_and_told_where_not():
    whole = noisy(0.3)
    human = whole.human.copy()
    human[3, 0] = 0
    known = audit(made(human, whole.judge), Settings(resamples=100, low=1, high=5))
    assert (known.used, known.incomplete, only(known).outside_scale, known.beyond_judge) == (599, 1, 1, 0)
    unknown = audit(made(human, whole.judge), Settings(resamples=100))
    assert (unknown.used, only(unknown).outside_scale, unknown.beyond_judge) == (600, 0, 1)


def test_nothing_rated_by_both_is_refused():
    with pytest.raises(InputError, match="0 of 6 responses are rated by both"):
        audit(made(np.full((6, 1), np.nan), np.ones((6, 1))), Settings(resamples=100))


def test_a_judges_own_responses_are_known_by_its_name():
    known = ["claude", "gpt4o", "gpt4omini", "gemini"]
    assert own_responders(judge_names(Path("x/gpt-4o.csv"), None), known) == ("gpt4o",)
    assert own_responders(judge_names(Path("judge.csv"), "acme/GPT-4o-mini"), known) == ("gpt4omini",)
    assert own_responders(judge_names(Path("o4-mini.csv"), None), known) == ()


def test_whose_responses_are_left_out_can_be_said():
    ratings = noisy(0.3)
    assert excluded_responders(None, ("r2",), ratings) == ("r2",)
    assert excluded_responders(["none"], ("r2",), ratings) == ()
    assert excluded_responders(["r1", "r0"], ("r2",), ratings) == ("r0", "r1")
    with pytest.raises(InputError, match=r"--exclude r9: there is no such responder; there are: r0, r1"):
        excluded_responders(["r9"], (), ratings)
    found = audit(ratings, Settings(resamples=100), ("r2",))
    assert (found.own_responses, found.used, "r2" in found.responders) == (100, 500, False)


def published() -> dict[tuple[str, str], tuple[float, float]]:
    with (REAL / "published_icc.csv").open(encoding="utf-8") as file:
        return {(r["judge"], r["attribute"]): (float(r["icc_c1"]), float(r["icc_a1"])) for r in csv.DictReader(file)}


@cache
def real_ratings(judge: str) -> Ratings:
    return read_ratings(REAL / "human.csv", REAL / f"{judge}.csv", Columns())


@cache
def real_audit(
    judge: str, exclude: str | None = None, scale: tuple[int, int] | None = None, resamples: int = 200
) -> Audit:
    ratings = real_ratings(judge)
    low, high = scale or (None, None)
    names = judge_names(REAL / f"{judge}.csv", None)
    return audit(
        ratings,
        Settings(low=low, high=high, resamples=resamples),
        excluded_responders([exclude] if exclude else None, names, ratings),
    )


@real
def test_the_page_on_judges_shows_what_is_measured():
    page = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    table = page.split("<!-- judges -->")[1].split("<!-- /judges -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "`" in line]
    shown = {(row[0].strip("`"), row[1]): row[2:] for row in rows}
    measured = {}
    for judge in JUDGES:
        for axis in real_audit(judge, "gpt4omini" if judge == "o4-mini" else None, resamples=1000).axes:
            numbers = [
                text
                for level in (axis, axis.item)
                for text in (f"{level.icc_c1.value:.2f}", ends(level.icc_c1), f"{level.icc_a1.value:.2f}")
            ]
            shares = [f"{100 * (share or 0):.0f}" for share in (axis.ties, axis.inversions)]
            verdict = [f"{axis.bias:+.2f}", str(axis.verdict), "passes" if axis.passes else "refused"]
            measured[judge, axis.axis] = [*numbers, *shares, *verdict]
    assert len(measured) == 28 and shown == measured


def ends(found: Coefficient) -> str:
    assert found.ci95 is not None
    return ", ".join(f"{end:.2f}" for end in found.ci95)


def differences(found: dict[str, Audit]) -> list[float]:
    gaps = []
    for (judge, axis), (c1, a1) in published().items():
        report = next(one for one in found[judge].axes if one.axis == axis)
        assert report.icc_c1.value is not None and report.icc_a1.value is not None
        gaps += [abs(report.icc_c1.value - c1), abs(report.icc_a1.value - a1)]
    return gaps


@real
def test_all_published_coefficients_are_reproduced():
    gaps = differences({judge: real_audit(judge) for judge in JUDGES})
    assert len(gaps) == 56
    assert max(gaps) <= 0.02 and sum(gaps) / 56 <= 0.004


@real
def test_they_are_reproduced_to_a_few_thousandths_with_the_mini_models_left_out_as_it_was():
    found = {judge: real_audit(judge, "gpt4omini" if judge == "o4-mini" else None) for judge in JUDGES}
    gaps = differences(found)
    assert max(gaps) <= 0.004 and sum(gaps) / 56 <= 0.001


@real
def test_poor_axes_are_refused_and_no_axis_passes_that_is_weak_at_item_level():
    for judge in JUDGES:
        for scale in (None, (1, 5)):
            for axis in real_audit(judge, scale=scale).axes:
                assert axis.item.icc_c1.ci95 is not None
                assert axis.passes == (axis.verdict != "poor" and axis.item.icc_c1.ci95[0] >= 0.40)
                assert not (axis.passes and axis.axis in ("relevance", "safety"))


@real
def test_judges_tie_and_invert_on_ordered_pairs_as_often_as_is_known():
    found = {judge: real_audit(judge, "gpt4omini" if judge == "o4-mini" else None) for judge in JUDGES}
    axes = [{axis.axis: axis for axis in one.axes} for one in found.values()]
    empathy, safety = ([one[name].ties or 0 for one in axes] for name in ("empathy", "safety"))
    assert [round(100 * share) for share in (min(empathy), max(empathy))] == [48, 61]
    assert [round(100 * share, 1) for share in (min(safety), max(safety))] == [74.5, 92.4]
    inverted = [one[name].inversions or 0 for one in axes for name in ("empathy", "safety")]
    assert [round(100 * share) for share in (min(inverted), max(inverted))] == [1, 8]
