"""``attune release``: the adapter of a finished run with its evidence, ready to be handed on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from trainers.config_file import load_config
from trainers.release import WEIGHTS, ReleaseCheck
from trainers.release import release as write_release
from trainers.run import load_back

app = command_app("attune release runs/demo --out released/demo")


@app.command(epilog=app.info.epilog)
def release(
    run: Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; none: `release` in the run's.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load it back into the policy server and compare its replies.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Verify a finished run, then write its adapter with model card, evaluation and hashes.

    Nothing is written for a run that is unfinished (exit 2) or does not verify (exit 1).
    """
    folder, checked = write_and_check(run, out, check)
    files = sorted(path.name for path in folder.iterdir())
    if json:
        told = checked.model_dump(mode="json") if checked else None
        print_json({"release": str(folder), "adapter": str(folder / WEIGHTS), "files": files, "check": told})
        return
    stdout().print(Text(f"released to {folder}", style="bold"))
    for name in files:
        stdout().print(Text(f"  {name:<28}{(folder / name).stat().st_size:>12,} bytes"))


def write_and_check(run: Path, out: Path | None = None, check: bool = True) -> tuple[Path, ReleaseCheck | None]:
    """Write the release; with ``check``, load it back into a fresh server, where it must answer as it was evaluated."""
    folder = write_release(run, out)
    if not check:
        return folder, None
    try:
        checked = load_back(load_config(run / "config.yaml", []), folder, run)
    except BaseException:
        shutil.rmtree(folder)  # what did not pass must not lie about as if it had
        raise
    stderr.print(
        f"loaded back: {checked.same} of {checked.replies} replies are the same, log-probabilities differ by at most "
        f"{checked.max_logprob_difference:.1e} nats over {checked.tokens} tokens",
        markup=False,
        soft_wrap=True,
    )
    return folder, checked
