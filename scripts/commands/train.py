"""``attune train``: one run from a configuration, or, with ``--dry-run``, what it would be and need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from envs.errors import InputError
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from scripts.progress import Told
from scripts.tables import NOTHING
from trainers.config import RunConfig
from trainers.config_file import dump_config, load_config
from trainers.memory import GIB, ArchitectureUnknown, DeviceEstimate, architecture_of, estimate_memory
from trainers.plan import Plan
from trainers.run import run

app = command_app("attune train --config configs/demo.yaml trainer.steps=10 run.seed=1")


@app.command(epilog=app.info.epilog)
def train(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; none: the defaults.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and a memory estimate.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train an adapter, compare it with its base on held-out cards, verify the record; or say what that would need."""
    resolved = load_config(config, overrides or [])
    plan = check_inputs(resolved)
    if dry_run:
        _show_plan(resolved, json)
        return
    summary = run(plan, Told(resolved.trainer.steps).progress, resume=resume, overwrite=overwrite)
    if not summary:  # a rank but the first, which goes on alone
        return
    if json:
        print_json(summary)
    else:
        for share, told in (("warm_start", "what imitation gave"), ("rl", "what RL added to it")):
            if "shares" in summary:
                stdout().print(f"{told}: {_points(summary['shares'][share])} points of emotion", markup=False)
        if memory := summary["memory"]:
            stdout().print(memory_line(memory), markup=False)
        stdout().print(f"{resolved.run.folder}: finished; next: attune release {resolved.run.folder}", markup=False)


def memory_line(memory: dict[str, Any]) -> str:
    """Training's measured peak beside its estimate."""
    of = {"allocated": "allocated on a GPU", "resident": "resident set of the training process"}[memory["of"]]
    reserved, estimate = memory["reserved_bytes"], memory["estimate_bytes"]
    told = f"memory of training at its peak: {memory['peak_bytes'] / GIB:.2f} GiB ({of})"
    told += "" if reserved is None else f", {reserved / GIB:.2f} reserved"
    return told + ("; not estimated" if estimate is None else f"; estimated: {estimate / GIB:.2f}")


def _points(difference: dict[str, Any]) -> str:
    mean, ends = difference["mean"], difference["ci95"]
    return NOTHING if mean is None else f"{mean:+.1f}" + (f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else "")


def check_inputs(config: RunConfig) -> Plan:
    """Read what the configuration names, so that a mistake in it is told before anything heavy is imported."""
    plan = Plan.of(config)
    if len(plan.train_cards) < config.trainer.cards_per_step:
        raise InputError(
            f"cards.train_split: {config.cards.train_split!r} has {len(plan.train_cards)} card(s) in "
            f"{', '.join(config.cards.languages)}, {config.trainer.cards_per_step} needed (trainer.cards_per_step); "
            "add cards, languages (cards.languages) or folders (cards.paths)"
        )
    return plan


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
