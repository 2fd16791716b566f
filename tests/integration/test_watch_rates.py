"""How often the watch is wrong: the table of docs/watch.md, simulated again."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

import pytest

from tests.unit.watch_runs import CLEAN, GAMED, Course, simulate_all
from trainers.watch_rules import load_rules

PAGE = Path(__file__).resolve().parents[2] / "docs" / "watch.md"
RUNS = {"clean": 1000, "gamed": 200}
RATES = [("clean", name, course) for name, course in CLEAN.items()]
RATES += [("gamed", name, course) for name, course in GAMED.items()]

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def measured(kind: str, name: str, course: Course) -> list[str]:
    """A row: share of runs with any alarm and the median step of the first; again with half the evaluations."""
    cells = [name, f"{RUNS[kind]:,}"]
    for every in (1, 2):
        runs = simulate_all(name, course, load_rules(), RUNS[kind], every)
        first = [alarms[0].step for alarms in runs if alarms]
        cells += [f"{100 * len(first) / len(runs):.1f} %", f"{median(first):g}" if first else "-"]
    return cells


@pytest.mark.parametrize(("kind", "name", "course"), RATES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_rates_in_the_docs_are_those_of_the_simulation(kind: str, name: str, course: Course) -> None:
    written = PAGE.read_text(encoding="utf-8").split("<!-- rates -->")[1].split("<!-- /rates -->")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", written, re.M)]
    assert measured(kind, name, course) in rows
