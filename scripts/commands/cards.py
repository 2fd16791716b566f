"""``attune cards``: check the persona cards, show one, count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.table import Table

from envs.card_set import find_leaks, load_cards
from envs.cards import CARDS_DIR, PersonaCard
from envs.errors import InputError
from scripts.console import JsonFlag, command_app, print_json, stdout

app = command_app("attune cards stats", no_args_is_help=True)

Paths = Annotated[list[Path] | None, typer.Argument(help="Card files or folders.", show_default="configs/cards")]
SPLITS = ("train", "dev", "test")
UNKNOWN = "unknown"


@app.callback()
def _cards() -> None:
    """Check the persona cards, show one, count them."""


@app.command(epilog="Example: attune cards check my_cards/")
def check(paths: Paths = None, json: JsonFlag = False) -> None:
    """Read every card and look for people who stand in two splits. Exit status 2 when anything is wrong."""
    cards = load_cards(paths or [CARDS_DIR])
    leaks = [
        f"{leak.first.id} ({leak.first.split}) and {leak.second.id} ({leak.second.split}) tell of the same person "
        f"(likeness {leak.likeness:.2f}); rewrite one, or put both into one split"
        for leak in find_leaks(cards)
    ]
    if leaks:
        raise InputError("\n".join(leaks))
    if json:
        print_json({"cards": len(cards), "leaks": []})
    else:
        stdout().print(f"{len(cards)} cards: all well-formed, nobody in two splits")


@app.command(epilog="Example: attune cards show en-bus-depot-letter")
def show(
    card: Annotated[str, typer.Argument(help="A card's id or file.")],
    paths: Annotated[list[Path] | None, typer.Option("--cards", help="Where to look for the id.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show one card, the hidden need included, with its content hash."""
    found = find_card(card, paths or [CARDS_DIR])
    if json:
        print_json({**found.model_dump(mode="json"), "hash": found.hash})
        return
    text = yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    stdout().print(f"{text}hash: {found.hash}", markup=False, soft_wrap=True)


def find_card(card: str, paths: list[Path]) -> PersonaCard:
    """The card with an id, or in a file. Raises InputError naming near ones."""
    if card.endswith((".yaml", ".yml")):
        return load_cards([Path(card)])[0]
    known = {one.id: one for one in load_cards(paths)}
    if card not in known:
        near = [name for name in known if card in name]
        hint = f"near it: {', '.join(near[:5])}" if near else "`attune cards stats` tells what there is"
        raise InputError(f"{card}: no card has this id in {', '.join(map(str, paths))}; {hint}")
    return known[card]


def _decade(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number // 10 * 10}-{number // 10 * 10 + 9}"


GROUPINGS: dict[str, Callable[[PersonaCard], str]] = {
    "language": lambda card: card.language,
    "hidden need": lambda card: card.hidden_need or UNKNOWN,
    "temperament": lambda card: card.temperament or UNKNOWN,
    "age": lambda card: _decade(None if isinstance(card.profile, str) else card.profile.age),
    "risk": lambda card: card.risk,
    "start emotion": lambda card: _decade(card.start_emotion),
}


@app.command(epilog="Example: attune cards stats --json")
def stats(paths: Paths = None, json: JsonFlag = False) -> None:
    """Count the cards by split, and in each by language, hidden need, temperament, age, risk and start emotion."""
    where = paths or [CARDS_DIR]
    cards = load_cards(where)
    counts = {name: Counter((key(card), card.split) for card in cards) for name, key in GROUPINGS.items()}
    if json:
        tables = {
            name: {
                value: {split: count[value, split] for split in SPLITS}
                for value in sorted({value for value, _ in count})
            }
            for name, count in counts.items()
        }
        print_json({"cards": len(cards), "splits": Counter(card.split for card in cards), **tables})
        return
    table = Table(title=f"{len(cards)} cards in {', '.join(map(str, where))}", title_justify="left")
    for column in ("", "", *SPLITS, "all"):
        table.add_column(column, justify="right" if column else "left")
    for name, count in counts.items():
        for index, value in enumerate(sorted({value for value, _ in count})):
            row = [count[value, split] for split in SPLITS]
            table.add_row("" if index else name, value, *map(str, row), str(sum(row)))
        table.add_section()
    row = [sum(card.split == split for card in cards) for split in SPLITS]
    table.add_row("all", "", *map(str, row), str(sum(row)))
    stdout().print(table)
