"""``attune verify``: a finished run checked against its own record, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from scripts.console import RUN_FAILED, JsonFlag, command_app, print_json, stdout
from trainers.verification import CHECKS, Verification, verify_run

app = command_app("attune verify runs/demo")


@app.command(epilog=app.info.epilog)
def verify(
    run: Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")],
    json: JsonFlag = False,
) -> None:
    """Compute every emotion, score, total and table of a finished run again and compare it with what was recorded.

    Exits with 1 and names file and line where something is not as recorded, with 2 where there is no finished run.
    """
    verification = verify_run(run)
    if json:
        print_json(verification.model_dump(mode="json"))
    else:
        stdout().print(verification_table(verification, run))
        stdout().print(verdict(verification, run))
    if not verification.verified:
        raise typer.Exit(RUN_FAILED)


def verification_table(verification: Verification, run: Path) -> Table:
    """What was checked, how many, and what came of it."""
    table = Table(title=f"{run}, checked against its record", title_justify="left", title_style="bold")
    table.box, table.pad_edge = box.HORIZONTALS, False
    table.add_column("checked", justify="right")
    table.add_column("what")
    table.add_column("result")
    for name, check in verification.checks.items():
        result = {True: "ok" if check.checked else "none kept", False: "PROBLEM", None: "not finished"}[check.ok]
        table.add_row(f"{check.checked:,}", CHECKS[name], Text(result, style="" if check.ok else "bold"))
    return table


def verdict(verification: Verification, run: Path) -> Text:
    """One line: verified, or the first problem with its file and line."""
    if verification.problem is None:
        return Text(f"verified: {verification.dialogues:,} dialogues, {verification.turns:,} turns", style="bold green")
    file, line, message = (verification.problem[key] for key in ("file", "line", "message"))
    place = f"{run / str(file)}:{line}" if line else str(run / str(file))
    return Text.assemble(("not verified: ", "bold red"), f"{place}: {message}")
