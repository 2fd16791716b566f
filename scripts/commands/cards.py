"""``attune cards``: check the persona cards, show one, count them, import, split by person, draft new ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import typer
import yaml
from rich.table import Table

from envs.card_files import planned_splits, save_cards, save_texts
from envs.card_set import assign_splits, load_card_files, load_cards
from envs.card_writer import Order, read_topics, write_cards
from envs.cards import CARDS_DIR, Language, PersonaCard, Split
from envs.errors import InputError
from envs.importers.convert import Origin, import_cards
from scripts.card_reports import import_summary, import_table, leak_lines, model_door, one_of, required
from scripts.console import RUN_FAILED, JsonFlag, command_app, print_json, stdout

app = command_app("attune cards stats", no_args_is_help=True)

Paths = Annotated[list[Path] | None, typer.Argument(help="Card files or folders.", show_default="configs/cards")]
SPLITS = ("train", "dev", "test")
UNKNOWN = "unknown"


@app.callback()
def _cards() -> None:
    """Check the persona cards, show one, count them, import others, split them by person, draft new ones."""


@app.command(epilog="Example: attune cards check my_cards/")
def check(paths: Paths = None, json: JsonFlag = False) -> None:
    """Read every card and look for people who stand in two splits. Exit status 2 when anything is wrong."""
    cards = load_cards(paths or [CARDS_DIR])
    if told := leak_lines(cards):
        raise InputError("\n".join(told))
    if json:
        print_json({"cards": len(cards), "leaks": []})
    else:
        stdout().print(f"{len(cards)} cards: all well-formed, nobody in two splits")


@app.command(
    "import", epilog="Example: attune cards import sage cards.jsonl --out my_cards --licence MIT --source SAGE"
)
def import_(
    kind: Annotated[
        str, typer.Argument(help="sage, rlver, esc-eval, characterchat, patient-psi, kardia, table, MAP.yaml.")
    ],
    file: Annotated[
        str, typer.Argument(help="JSON, JSON lines, CSV, TSV, Parquet, a dataset's folder, or hf:owner/name.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the cards, a YAML file each.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the cards' text, as its owner names it.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the cards come from, as each card will say.")] = None,
    split: Annotated[str, typer.Option(help="train, dev or test; `attune cards split` splits by person.")] = "train",
    language: Annotated[
        str | None, typer.Option(help="en or zh; none: as the rows say, or as they are written.")
    ] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="key=column+column, over the kind's map.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would become of each field; write nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Make cards of another collection's rows, and tell what became of each of its fields."""
    if out is None and not dry_run:
        raise InputError("--out: is missing; name the folder for the cards, or look first with --dry-run")
    licence, source = required(
        {
            "--licence": (licence, "name the licence of the cards' text; without one it can't be used"),
            "--source": (source, "say where the cards come from, as each card will keep it"),
        }
    )
    origin = Origin(
        kind=kind,
        source=source,
        licence=licence,
        split=one_of("--split", split, get_args(Split)),
        language=None if language is None else one_of("--language", language, get_args(Language)),
    )
    imported = import_cards(file, origin, map_ or [])
    if not imported.cards:
        causes = "\n".join(f"{row.where}: {row.cause}" for row in imported.report.rejected[:5])
        raise InputError(f"{file}: no row became a card; name its columns with --map\n{causes}")
    if out is not None and not dry_run:
        save_cards(imported.cards, out)
    if json:
        written = None if dry_run else str(out)
        print_json({**imported.report.model_dump(mode="json"), "out": written})
        return
    stdout().print(import_table(imported.report))
    stdout().print(import_summary(imported.report, None if dry_run else out), markup=False, soft_wrap=True)


@app.command(epilog="Example: attune cards split my_cards/ --by persona --dry-run")
def split(
    paths: Annotated[list[Path], typer.Argument(help="Card files or folders, all that will be used together.")],
    by: Annotated[
        str, typer.Option(help="persona: whole people move together, by the hash of their text.")
    ] = "persona",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would change; write nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Split cards again so that nobody stands in two splits, and write it into their files."""
    one_of("--by", by, ("persona",))
    files = load_card_files(paths)
    splits = assign_splits(list(files.values()))
    moved = {card.id: (card.split, splits[card.id]) for card in files.values() if card.split != splits[card.id]}
    changed = planned_splits(files, splits)
    if not dry_run:
        save_texts(changed)
    after = [card.model_copy(update={"split": splits[card.id]}) for card in files.values()]
    leaks = leak_lines(after)
    counts = {name: sum(card.split == name for card in after) for name in SPLITS}
    if json:
        print_json({"cards": len(after), "moved": moved, "splits": counts, "leaks": leaks, "written": not dry_run})
        return
    for name, (old, new) in moved.items():
        stdout().print(f"{name}: {old} -> {new}", markup=False, soft_wrap=True)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    verb = "would change" if dry_run else "changed"
    stdout().print(f"{len(after)} cards ({told}); {len(moved)} {verb}", markup=False, soft_wrap=True)
    for line in leaks:
        stdout().print(line, markup=False, soft_wrap=True)


@app.command(
    epilog="Example: attune cards write --topics topics.txt --count 8 --model M --base-url URL --out drafts --licence L"
)
def write(
    topics: Annotated[Path, typer.Option(help="Text file, a topic on each line; they are taken in turn.")],
    count: Annotated[int, typer.Option(min=1, help="How many cards.")],
    model: Annotated[str, typer.Option(help="Name of the model, as its server knows it.")],
    base_url: Annotated[
        str, typer.Option(help="The server's OpenAI-compatible address, such as http://127.0.0.1:8000/v1.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the drafts, a YAML file each.")],
    licence: Annotated[str | None, typer.Option(help="Licence that the drafts will stand under.")] = None,
    language: Annotated[str, typer.Option(help="en or zh.")] = "en",
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "train",
    existing: Annotated[
        list[Path] | None, typer.Option(help="Cards not to repeat.", show_default="configs/cards")
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Tries for each card.")] = 3,
    seed: Annotated[int, typer.Option(help="Another seed, other drafts.")] = 0,
    key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for each card.")] = 600.0,
    json: JsonFlag = False,
) -> None:
    """Let a language model draft new cards; bad and near-duplicate ones are refused. Read them before you use them."""
    [licence] = required({"--licence": (licence, "name the licence that the drafts will stand under")})
    order = Order(
        topics=read_topics(topics),
        count=count,
        licence=licence,
        language=one_of("--language", language, get_args(Language)),
        split=one_of("--split", split, get_args(Split)),
        attempts=attempts,
        seed=seed,
    )
    there = [out] if out.is_dir() and any(out.rglob("*.yaml")) else []
    known = load_cards([*(existing or [CARDS_DIR]), *there])
    ask_for = model_door(model, base_url, key_env, deadline)
    written = asyncio.run(write_cards(ask_for, order, known, keep=lambda card: save_cards([card], out)))
    if json:
        rejected = [one.model_dump(mode="json") for one in written.rejected]
        names = [card.id for card in written.cards]
        print_json({"cards": names, "rejected": rejected, "unfilled": written.unfilled, "out": str(out)})
    else:
        for one in written.rejected:
            stdout().print(f"refused: {one.topic}, attempt {one.attempt}: {one.cause}", markup=False, soft_wrap=True)
        stdout().print(f"{len(written.cards)} of {count} cards written to {out}", markup=False, soft_wrap=True)
    if written.unfilled:
        raise typer.Exit(RUN_FAILED)


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
