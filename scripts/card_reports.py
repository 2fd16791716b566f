"""What the commands on cards tell: leaks between splits, and what became of the fields of an import."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from envs.card_set import find_leaks
from envs.cards import PersonaCard
from envs.errors import InputError
from envs.importers.convert import FieldUse, ImportReport
from envs.models.model_client import ModelClient

HELD_OUT = ("test", "dev", "train")  # whose line tells of a leak: the split that is spoilt by it
SHOWN = 5

Choice = TypeVar("Choice", bound=str)


def required(options: dict[str, tuple[str | None, str]]) -> list[str]:
    """The values of options that have to say something, given as {option: (value, what to do when it is missing)}.

    Raises InputError naming every one that is missing.
    """
    missing = [
        f"{name}: is missing; {remedy}" for name, (given, remedy) in options.items() if not (given or "").strip()
    ]
    if missing:
        raise InputError("\n".join(missing))
    return [(given or "").strip() for given, _ in options.values()]


def one_of(option: str, given: str, known: Sequence[Choice]) -> Choice:
    """An option that is one of ``known``. Raises InputError with what is known."""
    for value in known:
        if value == given:
            return value
    close = get_close_matches(given, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise InputError(f"{option}: {given!r} is none of its values; {hint}")


def model_door(model: str, base_url: str, key_env: str | None, deadline_seconds: float) -> Callable[[], ModelClient]:
    """What opens the model for one card at a time. The endpoint is imported here alone."""
    from envs.models.endpoint import Endpoint
    from envs.models.endpoint_spec import EndpointSpec

    endpoint = Endpoint(EndpointSpec(base_url=base_url, model=model, key_env=key_env))
    return lambda: endpoint.dialogue(deadline_seconds)


def leak_lines(cards: Sequence[PersonaCard]) -> list[str]:
    """A line for each held-out card whose person stands in another split too, and one that sums them up."""
    others: dict[str, list[tuple[PersonaCard, float]]] = defaultdict(list)
    for leak in find_leaks(cards):
        held, other = sorted((leak.first, leak.second), key=lambda card: HELD_OUT.index(card.split))
        others[held.id].append((other, leak.likeness))
    by_id = {card.id: card for card in cards}
    lines = []
    for name, found in sorted(others.items()):
        listed = ", ".join(f"{card.id} ({card.split})" for card, _ in found)
        likeness = max(likeness for _, likeness in found)
        lines.append(
            f"{name} ({by_id[name].split}) and {listed} tell of the same person (likeness {likeness:.2f}); "
            "rewrite one, or put both into one split"
        )
    for split in HELD_OUT[:2]:
        if count := sum(by_id[name].split == split for name in others):
            whole = sum(card.split == split for card in cards)
            lines.append(
                f"{count} of {whole} {split} cards tell of a person who stands in another split too; "
                "`attune cards split` puts whole people into one split"
            )
    return lines


def import_table(report: ImportReport) -> Table:
    """What became of each field, in rows."""
    table = Table(title=Text(f"{report.source_file}, read as {report.kind}"), title_justify="left", title_style="bold")
    table.box, table.pad_edge = box.HORIZONTALS, False
    table.add_column("field", overflow="fold")
    for heading in ("mapped", "noted", "left out", "missing"):
        table.add_column(heading, justify="right")
    table.add_column("becomes", overflow="fold")
    for name, use in report.fields.items():
        counts = (use.mapped, use.noted, use.left_out, use.missing)
        table.add_row(Text(name), *(str(count or "-") for count in counts), Text(_becomes(name, use)))
    return table


def _becomes(name: str, use: FieldUse) -> str:
    parts = list(use.becomes)
    if use.noted:
        parts.append(f"notes.{name}")
    return ", ".join(parts) + (" (a part)" if use.left_out and use.becomes else "")


def import_summary(report: ImportReport, out: Path | None) -> str:
    """How many rows became cards, what they lack, and what did not become a card or a value."""
    languages = ", ".join(f"{count} {language}" for language, count in report.languages.items())
    where = "nothing written" if out is None else f"written to {out}"
    lines = [f"{report.cards} of {report.rows} rows became cards ({languages}); {where}"]
    if report.without:
        lines.append("cards without " + ", ".join(f"{key}: {count}" for key, count in report.without.items()))
    for key, values in report.unknown_values.items():
        listed = ", ".join(f"{value[:60]!r} ({count})" for value, count in list(values.items())[:SHOWN])
        lines.append(f"no known {key}, kept as a note: {listed}{_more(len(values))}")
    if report.same_person:
        cards = sum(map(len, report.same_person))
        lines.append(
            f"{len(report.same_person)} people are told on {cards} cards; all are kept, and belong into one split:"
        )
        lines += ["  " + ", ".join(group) for group in report.same_person[:SHOWN]]
        lines += ["  ..."] * (len(report.same_person) > SHOWN)
    for row in report.rejected[:SHOWN]:
        lines.append(f"no card: {row.where}: {row.cause}")
    if len(report.rejected) > SHOWN:
        lines.append(f"no card: {len(report.rejected) - SHOWN} more rows; --json lists them all")
    return "\n".join(lines)


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""
