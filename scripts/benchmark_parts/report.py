"""From measurements to numbers: medians and ranges over rounds, ratios within a round, targets.

A ratio is taken within one round of one run, where both sides met the same machine, and then its median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from scripts.benchmark_parts.work import Played, hidden, spread

NOTHING = "-"
Rows = Sequence[dict[str, Any]]
Spread = dict[str, float | int] | None

# (what, unit, target, whether more is better, where the number is)
TARGETS: tuple[tuple[str, str, float, bool, Callable[[dict[str, Any]], Any]], ...] = (
    ("turns/s, ours / TRL, 16 dialogues", "×", 5.0, True, lambda r: ratio(r, 16, True, "TRL")),
    ("turns/s, ours / lock-step, 16 dialogues", "×", 3.0, True, lambda r: ratio(r, 16, True, "lock-step")),
    ("turns/s, ours / verifiers 0.3.1, 16 dialogues", "×", 1.0, True, lambda r: ratio(r, 16, True, "verifiers 0.3.1")),
    ("turns/s, ours / verifiers 0.4.0, 16 dialogues", "×", 1.0, True, lambda r: ratio(r, 16, True, "verifiers 0.4.0")),
    ("turns/s without waiting, ours / lock-step, 16 dialogues", "×", 0.95, True,
     lambda r: ratio(r, 16, False, "lock-step")),
    ("throughput with waiting / without, 64 in flight", "×", 0.9, True, lambda r: stream_ratio(r)),
    ("prefix hits / ideal, 16 dialogues", "×", 0.95, True, lambda r: prefix_share(_of(r, 16, True, "ours"))),
    ("prefix hits / ideal right after a publish", "×", 0.95, True,
     lambda r: prefix_share([row for row in r.get("after_publish") or () if not row["again"]])),
    ("publish to first token, adapter of rank 8", "s", 0.5, False,
     lambda r: _publish(r, lambda p: p["adapters"]["8"]["seconds"]["publish_to_first_token"])),
    ("bytes, adapter of rank 8 / full weights", "×", 0.02, False,
     lambda r: _publish(r, lambda p: spread([p["adapters"]["8"]["share_of_full_bytes"]]))),
    ("publish to first token, adapter of rank 16", "s", 0.5, False,
     lambda r: _publish(r, lambda p: p["adapters"]["16"]["seconds"]["publish_to_first_token"])),
    ("bytes, adapter of rank 16 / full weights", "×", 0.02, False,
     lambda r: _publish(r, lambda p: spread([p["adapters"]["16"]["share_of_full_bytes"]]))),
    ("orchestration, client that answers at once", "ms a turn", 2.0, False, lambda r: _overhead(r, "null")),
    ("orchestration, embedded client", "ms a turn", 2.0, False, lambda r: _overhead(r, "embedded")),
    ("peak memory, 10,000 dialogues / 2,000", "×", 1.1, False, lambda r: growth(r.get("many") or (), "peak_mib")),
    ("seconds a dialogue, last fifth of 10,000 / first", "×", 1.1, False, lambda r: slowing(r.get("many") or ())),
)  # fmt: skip


def _of(report: dict[str, Any], size: int, latency: bool, variant: str) -> list[dict[str, Any]]:
    rows = report.get("rollouts") or ()
    return [row for row in rows if (row["size"], row["latency"], row["variant"]) == (size, latency, variant)]


def turns_per_second(row: dict[str, Any]) -> float:
    """Of one measurement."""
    return row["turns"] / row["seconds"]


def ratio(report: dict[str, Any], size: int, latency: bool, other: str, ours: str = "ours") -> Spread:
    """Turns/s of ``ours`` over those of ``other``, round by round; None where either wasn't measured."""
    theirs = {row["round"]: turns_per_second(row) for row in _of(report, size, latency, other)}
    rows = _of(report, size, latency, ours)
    return spread([turns_per_second(row) / theirs[row["round"]] for row in rows if row["round"] in theirs])


def stream_ratio(report: dict[str, Any]) -> Spread:
    """Turns/s of the stream with waiting over those without, round by round."""
    rows = report.get("stream") or ()
    rates = {(row["round"], row["latency"]): turns_per_second(row) for row in rows}
    rounds = sorted({round_ for round_, _ in rates})
    return spread([rates[each, True] / rates[each, False] for each in rounds])


def prefix_share(rows: Rows) -> Spread:
    """Tokens found in the prefix cache over those that could have been; rows without an ideal are left out."""
    return spread([row["prefix_hits"] / row["prefix_ideal"] for row in rows if row["prefix_ideal"]])


def hidden_share(report: dict[str, Any], size: int, variant: str) -> Spread:
    """The share of the clients' waiting that did not add to the variant's wall clock; see ``hidden``."""
    without = {row["round"]: row["seconds"] for row in _of(report, size, False, variant)}
    shares = [
        hidden(Played(row["dialogues"], row["turns"], row["seconds"], row["waited"]), without[row["round"]])
        for row in _of(report, size, True, variant)
        if row["round"] in without
    ]
    return spread([share for share in shares if share is not None])


def _publish(report: dict[str, Any], pick: Callable[[dict[str, Any]], Spread]) -> Spread:
    return pick(report["publish"]) if report.get("publish") else None


def _overhead(report: dict[str, Any], client: str) -> Spread:
    return spread((report.get("overhead") or {}).get(client, []))


def growth(looks: Rows, key: str) -> Spread:
    """The last look's number over the first one's."""
    return spread([looks[-1][key] / looks[0][key]]) if len(looks) > 1 else None


def slowing(looks: Rows) -> Spread:
    """Seconds of the dialogues between the last two looks, each, over those until the first look."""
    if len(looks) < 2:
        return None
    first = looks[0]["seconds"] / looks[0]["dialogues"]
    last = (looks[-1]["seconds"] - looks[-2]["seconds"]) / (looks[-1]["dialogues"] - looks[-2]["dialogues"])
    return spread([last / first])


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with what was measured; ``met`` is None where nothing was. A median decides."""
    found = []
    for what, unit, target, more, pick in TARGETS:
        value = pick(report)
        met = None if value is None else (value["median"] >= target if more else value["median"] <= target)
        found.append({"what": what, "unit": unit, "target": target, "more_is_better": more, "value": value, "met": met})
    return found


def targets_table(rows: Rows) -> Table:
    """One line for each target."""
    table = _table("targets")
    for heading in ("what", "measured", "range", "target", "met"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        value, sign = row["value"], "≥" if row["more_is_better"] else "≤"
        met = {True: "yes", False: "no", None: NOTHING}[row["met"]]
        table.add_row(f"{row['what']}, {row['unit']}", _median(value), _range(value), f"{sign} {row['target']:g}", met)
    return table


def rollouts_table(report: dict[str, Any]) -> Table:
    """Variants and sizes: turns/s and dialogues/s with waiting, turns/s without, what was hidden, prefix hits."""
    table = _table("rollouts: median over rounds (range)")
    for heading in ("dialogues", "variant", "turns/s", "dialogues/s", "without waiting", "hidden", "prefix hits"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    rows = report.get("rollouts") or ()
    for size in sorted({row["size"] for row in rows}):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            measured = _of(report, size, True, variant)
            rates = spread([turns_per_second(row) for row in measured])
            dialogues = spread([row["dialogues"] / row["seconds"] for row in measured])
            at_once = spread([turns_per_second(row) for row in _of(report, size, False, variant)])
            share, hits = hidden_share(report, size, variant), _hits(measured)
            table.add_row(str(size), variant, _both(rates), _median(dialogues), _both(at_once), _percent(share), hits)
        table.add_section()
    return table


def _hits(rows: Rows) -> str:
    hits, queries = sum(row["prefix_hits"] for row in rows), sum(row["prefix_queries"] for row in rows)
    ideal = prefix_share(rows)
    share = f"{hits / queries:.0%}" if queries else NOTHING
    return share if ideal is None else f"{share} ({ideal['median']:.1%} of ideal)"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)


def _median(value: Spread) -> str:
    return NOTHING if value is None else f"{value['median']:.3g}"


def _range(value: Spread) -> str:
    return NOTHING if value is None or value["rounds"] == 1 else f"{value['low']:.3g} - {value['high']:.3g}"


def _both(value: Spread) -> str:
    return NOTHING if value is None else f"{value['median']:.1f} ({value['low']:.1f} - {value['high']:.1f})"


def _percent(value: Spread) -> str:
    return NOTHING if value is None else f"{value['median']:.0%}"
