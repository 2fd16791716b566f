"""Precision and recall of the gates on labelled dialogues, as counts: no text is printed.

python -m tests.unit.gate_figures FILE.jsonl...    prints the rows of the tables in docs/gates.md
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from envs.cards import Language
from rewards.gates import GATES, Gate, check_messages
from tests.unit import gate_fixtures

Counts = Counter[tuple[Gate, Language, bool, bool | None]]


def counts(fixtures: Iterable[gate_fixtures.Fixture]) -> Counts:
    """How often each (gate, language, label, verdict) occurs."""
    found: Counts = Counter()
    for one in fixtures:
        said = check_messages(one.messages, one.language, [one.gate])
        found[one.gate, one.language, one.closed, said[one.turn].closed] += 1
    return found


def four(found: Counts, gate: Gate, languages: tuple[Language, ...] = ("en", "zh")) -> tuple[int, int, int, int]:
    """Closed rightly, closed wrongly, missed (a None counts as missed), passed rightly."""

    def total(label: bool, *verdicts: bool | None) -> int:
        return sum(found[gate, language, label, verdict] for language in languages for verdict in verdicts)

    return total(True, True), total(False, True), total(True, False, None), total(False, False)


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson interval of a share; ``of`` is above 0."""
    share, spread = hits / of, 1 + z * z / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / spread), min(1.0, (middle + half) / spread)


def share(hits: int, of: int) -> str:
    """A share with its interval as the tables show it; "none" where there is nothing to divide by."""
    if not of:
        return "none"
    low, high = wilson(hits, of)
    return f"{hits / of:.3f} ({low:.2f} to {high:.2f})"


def rows(found: Counts) -> list[str]:
    """One table row a gate, over both languages."""
    lines = []
    for gate in GATES:
        hit, wrong, missed, passed = four(found, gate)
        shares = f"{share(hit, hit + wrong)} | {share(hit, hit + missed)}"
        lines.append(f"| {gate} | {hit} | {wrong} | {missed} | {passed} | {shares} |")
    return lines


def language_rows(found: Counts) -> list[str]:
    """One table row a gate and language."""
    lines = []
    for gate in GATES:
        for language in ("en", "zh"):
            hit, wrong, missed, passed = four(found, gate, (language,))
            shares = f"{share(hit, hit + wrong)} | {share(hit, hit + missed)}"
            lines.append(f"| {gate} | {language} | {hit} | {wrong} | {missed} | {passed} | {shares} |")
    return lines


if __name__ == "__main__":
    measured = counts(one for name in sys.argv[1:] for one in gate_fixtures.load_file(Path(name)))
    print("\n".join([*rows(measured), "", *language_rows(measured)]))
