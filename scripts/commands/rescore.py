"""``attune rescore``: other rewards over a saved run, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from envs.errors import InputError
from scripts.console import JsonFlag, command_app, print_json, stdout
from trainers.config import RewardTerm
from trainers.rescore import Rescored, recorded_totals, rescore
from trainers.run_files import append_lines

app = command_app("attune rescore runs/demo --reward emotion --out runs/demo-rescored.jsonl")


@app.command("rescore", epilog=app.info.epilog)
def command(
    path: Annotated[Path, typer.Argument(help="A run's folder, an evaluation's, or a trajectories file.")],
    reward: Annotated[list[str], typer.Option(help="NAME or NAME=WEIGHT; may be given several times.")],
    out: Annotated[Path | None, typer.Option(help="File for a JSON line a dialogue; it must not exist.")] = None,
    json: JsonFlag = False,
) -> None:
    """Score every recorded dialogue again with these rewards. Receipts are checked first; no model is asked."""
    if out and out.exists():
        raise InputError(f"{out}: exists already; name another file")
    found = rescore(path, [_term(text) for text in reward])
    if out:
        append_lines(out, [one.model_dump_json() for one in found])
    before = recorded_totals(path)
    same = [one.total == before[one.dialogue_id] for one in found if one.dialogue_id in before]
    if json:
        dialogues = [one.model_dump(mode="json") for one in found]
        print_json({"dialogues": dialogues, "recorded": len(same), "equal": sum(same)})
        return
    stdout().print(_table(found))
    if same:
        stdout().print(f"{sum(same)} of {len(same)} training dialogues have the total that the run recorded")


def _term(text: str) -> RewardTerm:
    name, equals, weight = text.partition("=")
    try:
        return RewardTerm.model_validate({"name": name, **({"weight": weight} if equals else {})})
    except ValidationError as error:
        raise InputError(f"--reward {text}: {error.errors()[0]['msg']}; write NAME or NAME=WEIGHT") from error


def _table(found: Sequence[Rescored]) -> Table:
    table = Table(title="rewards over the record, each in [0, 1]", title_justify="left")
    for heading in ("file", "reward", "mean", "measured", "not measured"):
        table.add_column(heading, justify="left" if heading in ("file", "reward") else "right")
    for file in dict.fromkeys(one.file for one in found):
        rows = [one for one in found if one.file == file]
        for name in [*rows[0].scores, "total"]:
            values = [one.total if name == "total" else one.scores[name] for one in rows]
            known = [value for value in values if value is not None]
            mean = f"{sum(known) / len(known):.4f}" if known else "-"
            table.add_row(file, name, mean, str(len(known)), str(len(values) - len(known)))
        table.add_section()
    return table
