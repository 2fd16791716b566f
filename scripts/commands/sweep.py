"""``attune sweep``: arms, such as algorithms and ways of credit, over several seeds; one table, one plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from envs.errors import InputError
from scripts.console import RUN_FAILED, JsonFlag, command_app, print_json, stderr, stdout
from scripts.sweep_plot import DARK, LIGHT, draw
from scripts.sweep_runs import check_cells, run_cells, take_folder
from scripts.sweep_tables import markdown, tables
from trainers.manifest import write_whole
from trainers.sweep import cells_of, load_grid
from trainers.sweep_report import SweepReport, report_sweep, write_report

PAGE = "sweep.md"

app = command_app("attune sweep --config configs/sweeps/demo.yaml --out runs/sweep")


@app.command(epilog=app.info.epilog)
def sweep(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, for every arm.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the grid.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs and the results.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished runs, go on with the others.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    report: Annotated[Path | None, typer.Option(help="Run nothing: compute the results of this folder again.")] = None,
    json: JsonFlag = False,
) -> None:
    """Train every arm of a grid with every seed, then compare the arms on held-out cards.

    Exits with 1 when a run failed; the others are reported all the same.
    """
    if report is None:
        report = _run(config, overrides or [], out, resume, jobs)
    elif config or out or overrides or resume:
        raise InputError("--report runs nothing, so it stands alone: say `attune sweep --report DIR`")
    found = report_sweep(report)
    _write(report, found)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _tell(report, found)
    if found.problems:
        raise typer.Exit(RUN_FAILED)


def _run(config: Path | None, overrides: list[str], out: Path | None, resume: bool, jobs: int) -> Path:
    """Check everything, run every cell, and return the sweep's folder."""
    if config is None or out is None:
        raise InputError("give --config GRID and --out DIR, or --report DIR for a sweep that was run")
    grid = load_grid(config, overrides)
    cells = cells_of(grid, config, out)
    check_cells(cells, config, jobs)
    take_folder(out, grid, cells, resume)
    started = time.monotonic()

    def tell(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        stderr.print(Text.assemble((f"{minutes:>3}:{seconds:02}  ", "dim"), text), soft_wrap=True)

    run_cells(cells, out, jobs, tell)
    return out


def _write(out: Path, report: SweepReport) -> None:
    write_report(out, report)
    write_whole(out / PAGE, markdown(report, (f"{LIGHT}.svg", f"{DARK}.svg")))
    draw(report, out)


def _tell(out: Path, report: SweepReport) -> None:
    for table in tables(report):
        stdout().print(table)
        stdout().print()
    for name, problem in report.problems.items():
        stdout().print(Text(f"{name}: {problem}"), soft_wrap=True)
    stdout().print(Text(f"{out / PAGE}, {out / 'sweep.json'}, {out / (LIGHT + '.svg')} and .png"), soft_wrap=True)
