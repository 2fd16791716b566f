"""``attune release``: the adapter of a finished run with its evidence, ready to be handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from scripts.console import JsonFlag, command_app, print_json, stdout
from trainers.release import WEIGHTS
from trainers.release import release as write_release

app = command_app("attune release runs/demo --out released/demo")


@app.command(epilog=app.info.epilog)
def release(
    run: Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; none: `release` in the run's.")] = None,
    json: JsonFlag = False,
) -> None:
    """Verify a finished run, then write its adapter with model card, evaluation and hashes.

    Nothing is written for a run that is unfinished (exit 2) or does not verify (exit 1).
    """
    folder = write_release(run, out)
    files = sorted(path.name for path in folder.iterdir())
    if json:
        print_json({"release": str(folder), "adapter": str(folder / WEIGHTS), "files": files})
        return
    stdout().print(Text(f"released to {folder}", style="bold"))
    for name in files:
        stdout().print(Text(f"  {name:<28}{(folder / name).stat().st_size:>12,} bytes"))
