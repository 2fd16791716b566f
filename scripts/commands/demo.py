"""``attune demo``: the whole loop, from persona cards to a released adapter, on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from scripts.commands.release import write_and_check
from scripts.console import RUN_FAILED, JsonFlag, command_app, print_json, stdout
from scripts.progress import Told
from scripts.tables import evaluation_table, language_table
from trainers.config_file import load_config
from trainers.evaluation import BASE, TUNED, WARM_START, Comparison, Evaluation, comparisons_among
from trainers.language import LanguageMeasures
from trainers.plan import Plan
from trainers.run import run

CONFIG = Path("configs/demo.yaml")

app = command_app("attune demo --seed 1")


@app.command(epilog=app.info.epilog)
def demo(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the demo's config.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run; from 1 on it has a folder of its own.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Bootstrap a small policy, train it with GRPO, compare it with its base on held-out cards, release the adapter.

    Writes to runs/demo, or runs/demo-SEED; what an earlier demo left there is replaced.
    """
    name = "demo" if seed == 0 else f"demo-{seed}"
    config = load_config(CONFIG, [f"run.seed={seed}", f"run.name={name}", *(overrides or [])])
    plan, told = Plan.of(config), Told(config.trainer.steps)
    summary = run(plan, told.progress, overwrite=True)
    folder = config.run.folder
    told.phase("releasing the adapter, and loading it back")
    released, check = write_and_check(folder)
    if json:
        print_json(summary | {"release_dir": str(released), "release_check": check and check.model_dump(mode="json")})
    else:
        _tell(folder, summary, released)
    if not summary["verified"]:
        raise typer.Exit(RUN_FAILED)


def _tell(folder: Path, summary: dict[str, object], released: Path) -> None:
    """The tables and the paths. The score comes last, where it is looked for."""
    out, warm = stdout(), (folder / "evaluation" / WARM_START).exists()
    sides = (BASE, WARM_START, TUNED) if warm else (BASE, TUNED)
    language = {side: LanguageMeasures.model_validate_json(_text(folder, side, "language.json")) for side in sides}
    evaluations = {side: Evaluation.model_validate_json(_text(folder, side, "evaluation.json")) for side in sides}
    out.print()
    out.print(language_table(language))
    out.print()
    clients = summary["clients"]
    assert isinstance(clients, dict)
    for (side, name), other in reversed(comparisons_among(sides).items()):
        difference = Comparison.model_validate_json(_text(folder, side, name))
        pair = {one: evaluations[one] for one in (other, side)}
        out.print(evaluation_table(pair, difference, clients["training"]))
        out.print()
    rows = (
        ("run", folder),
        ("summary", folder / "summary.json"),
        ("dialogues", folder / "evaluation" / "tuned" / "trajectories.jsonl"),
        ("released adapter", released),
        ("verified", "yes: attune verify " + str(folder) if summary["verified"] else "NO"),
        ("took", f"{summary['seconds']} s"),
    )
    for label, value in rows:
        out.print(Text(f"{label:<18}{value}"), soft_wrap=True)
    out.print(Text("A higher score with this simulated client, and no more than that: it says nothing about people."))


def _text(folder: Path, side: str, name: str) -> str:
    return (folder / "evaluation" / side / name).read_text(encoding="utf-8")
