"""``attune train``: one run from a configuration, or, with ``--dry-run``, what it would be and need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from envs.card_set import load_cards
from envs.client_spec import load_spec
from envs.errors import InputError, RunError
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from trainers.config import RunConfig
from trainers.config_file import dump_config, load_config
from trainers.memory import GIB, ArchitectureUnknown, DeviceEstimate, architecture_of, estimate_memory

app = command_app("attune train --config configs/demo.yaml trainer.steps=10 run.seed=1")


@app.command(epilog=app.info.epilog)
def train(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; none: the defaults.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and a memory estimate.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Train an adapter on the training cards, or check what a run would be and need."""
    resolved = load_config(config, overrides or [])
    check_inputs(resolved)
    if dry_run:
        _show_plan(resolved, json)
        return
    summary = run_training(resolved)
    if json:
        print_json(summary)


def check_inputs(config: RunConfig) -> None:
    """Read what the configuration names, so that a mistake in it is told before anything heavy is imported."""
    load_spec(config.client.spec)
    cards = [card for card in load_cards(config.cards.paths) if card.language in config.cards.languages]
    for key, split in (("cards.train_split", config.cards.train_split), ("evaluation.split", config.evaluation.split)):
        found = sum(card.split == split for card in cards)
        needed = config.trainer.cards_per_step if key == "cards.train_split" else 1
        if found < needed:
            raise InputError(
                f"{key}: {split!r} has {found} card(s) in {', '.join(config.cards.languages)}, {needed} needed; "
                "add cards, languages (cards.languages) or folders (cards.paths)"
            )


def run_training(config: RunConfig) -> dict[str, Any]:
    """Train as ``config`` says and return the summary of the run."""
    raise RunError(
        f"{config.run.folder}: training can't be started from the command line yet; --dry-run checks the configuration"
    )


def _show_plan(config: RunConfig, as_json: bool) -> None:
    try:
        estimates, unknown = estimate_memory(config, architecture_of(config.policy.model)), None
    except ArchitectureUnknown as error:
        estimates, unknown = [], str(error)
    if as_json:
        memory = [
            {"device": one.name, "bytes": one.parts, "total": one.total, "capacity": one.capacity, "fits": one.fits}
            for one in estimates
        ]
        print_json({"config": config.model_dump(mode="json"), "memory": memory, "memory_unknown": unknown})
        return
    stdout().print(dump_config(config), markup=False, soft_wrap=True, end="")
    if unknown:
        stderr.print(f"no memory estimate: {unknown}", markup=False, soft_wrap=True)
    else:
        stdout().print(_memory_table(estimates))
        for note in dict.fromkeys(note for one in estimates for note in one.notes):
            stdout().print(note, markup=False)


def _memory_table(estimates: list[DeviceEstimate]) -> Table:
    """Devices side by side, parts below each other, in GiB. Devices with the same numbers share a column."""
    table = Table(title="memory estimate, GiB", title_justify="left")
    table.add_column("")
    columns: list[tuple[str, DeviceEstimate]] = []
    for one in estimates:
        if columns and (one.parts, one.capacity) == (columns[-1][1].parts, columns[-1][1].capacity):
            columns[-1] = (f"{columns[-1][0]}, {one.name.removeprefix('GPU ')}", columns[-1][1])
        else:
            columns.append((one.name, one))
    for name, _ in columns:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for _, one in columns for part in one.parts):
        table.add_row(part, *(f"{one.parts[part] / GIB:.2f}" if part in one.parts else "" for _, one in columns))
    table.add_section()
    table.add_row("all", *(f"{one.total / GIB:.2f}" for _, one in columns))
    table.add_row("there is", *("?" if one.capacity is None else f"{one.capacity / GIB:.2f}" for _, one in columns))
    table.add_row("fits", *({True: "yes", False: "no", None: "?"}[one.fits] for _, one in columns))
    return table
