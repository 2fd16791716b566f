"""Tables for people."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from envs.client_spec import load_spec
from scripts.tables import ProbeResult, evaluation_table, language_table, probe_table
from tests.unit.dialogues import card, trajectory
from trainers.evaluation import EvaluationSettings, compare, summarise
from trainers.language import measure_language
from trainers.statistics import Resampling

ANN = card("en-ann", hidden_need="guided_self_reflection", temperament="negative")
BEN = card("en-ben", hidden_need="real_advice", temperament="passive")
SETTINGS = EvaluationSettings(seeds=(0,), success_at=100, failure_below=10, resampling=Resampling(resamples=200))
BASE = [trajectory(ANN, 0, [20]), trajectory(BEN, 0, [30])]
TUNED = [trajectory(ANN, 0, [100]), trajectory(BEN, 0, [90])]


def shown(table: Table, width: int = 80) -> str:
    stream = StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The figures of each row by its label."""
    split = [line.split("  ", 1) for line in text.splitlines() if "  " in line.strip()]
    return {label.strip(): rest.split() for label, rest in split}


def test_base_and_tuned_stand_beside_their_paired_difference():
    evaluations = {name: summarise(talks, [ANN, BEN], SETTINGS) for name, talks in (("base", BASE), ("tuned", TUNED))}
    text = shown(evaluation_table(evaluations, compare(BASE, TUNED, [ANN, BEN], SETTINGS)))
    found = rows(text)
    expected = ["25.0", "20.0,", "30.0", "95.0", "90.0,", "100.0", "+70.0", "60.0,", "80.0"]
    assert found["final emotion, 0 - 100"] == expected
    assert found["success, %"][:6] == ["0.0", "0.0,", "0.0", "50.0", "0.0,", "100.0"]
    assert "2 dialogues: 2 cards × 1 seeds" in text
    assert "…" not in text


def test_what_was_not_measured_is_a_dash_and_no_zero():
    talks = [trajectory(ANN, 0, []).model_copy(update={"stop": "error", "error": "gone"})]
    measures = measure_language(talks, load_spec("appraisal-v1"), SETTINGS.resampling)
    assert rows(shown(language_table({"base": measures})))["garbled, %"] == ["-"]


def test_probes_are_ranked_within_their_kind():
    results = [
        ProbeResult(name, kind, summarise(talks, [ANN, BEN], SETTINGS))
        for name, kind, talks in (("low", "fixed", BASE), ("high", "fixed", TUNED), ("good", "reference", TUNED))
    ]
    lines = shown(probe_table(results, "appraisal-v1")).splitlines()
    names = [line.split()[0] for line in lines if line.split() and line.split()[0] in {"low", "high", "good"}]
    assert names == ["high", "low", "good"]
    assert rows("\n".join(lines))["high"][:4] == ["95.0", "90.0", "to", "100.0"]


@pytest.mark.parametrize("width", [60, 200])
def test_a_narrow_terminal_keeps_every_figure_of_the_probes(width):
    result = ProbeResult("a_name_that_is_rather_long_for_a_policy", "fixed", summarise(TUNED, [ANN, BEN], SETTINGS))
    assert "90.0 to 100.0" in shown(probe_table([result], "appraisal-v1"), width)
