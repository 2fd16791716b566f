"""``attune sage-report``: the scoreboard of SAGE-style recordings, computed again from the dialogues themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from envs.recordings import load_rules, read_recordings
from scripts.console import JsonFlag, command_app, print_json, stdout
from trainers.scoreboard import FileScores, Scores, score_file
from trainers.statistics import Resampling

NOTHING = "-"

app = command_app("attune sage-report recorded/*.jsonl.gz")


@app.command(epilog=app.info.epilog)
def sage_report(
    files: Annotated[list[Path], typer.Argument(help="Recordings: JSON lines, plain or gzipped.", metavar="FILE...")],
    resamples: Annotated[int, typer.Option(min=1, help="Draws of the cards behind each interval.")] = 10_000,
    json: JsonFlag = False,
) -> None:
    """Compute score, successes, failures and obedience to the update rule again, by need and temperament too."""
    rules, resampling = load_rules(), Resampling(resamples=resamples)
    scored = [score_file(str(file), read_recordings(file), rules, resampling) for file in files]
    if json:
        print_json({"rule": rules.model_dump(mode="json"), "files": [one.model_dump(mode="json") for one in scored]})
        return
    for one in scored:
        stdout().print(scoreboard_table(one))
        for line in remarks(one):
            stdout().print(line, markup=False, soft_wrap=True)


def scoreboard_table(scores: FileScores) -> Table:
    """One file's results: all dialogues, then by hidden need and by temperament."""
    title = f"{scores.file}\n95 % intervals over cards; successes and failures counted, intervals in %"
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.HORIZONTALS, padding=0)
    table.show_edge = table.pad_edge = False
    table.add_column("", no_wrap=True)
    for heading in ("talks", "score", "", "success", "failure", "updates", "obey"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("all", *_cells(scores))
    for title, groups in (("by hidden need", scores.by_need), ("by temperament", scores.by_temperament)):
        table.add_section()
        table.add_row(Text(title, style="italic"))
        for name, group in groups.items():
            table.add_row(name.replace("_", " "), *_cells(group))
    return table


def _cells(scores: Scores) -> list[str]:
    score = NOTHING if scores.score is None else f"{scores.score:.2f}"
    checked = scores.updates - scores.updates_unchecked
    obeying = "100%" if checked == scores.updates_obeying_spec else f"{scores.updates_obeying_spec / checked:.1%}"
    return [
        str(scores.dialogues),
        score,
        _interval(scores.score_ci95, 1),
        f"{scores.successes} {_interval(scores.success_rate.ci95, 100):>6}",
        f"{scores.failures} {_interval(scores.failure_rate.ci95, 100):>6}",
        str(scores.updates),
        obeying if checked else NOTHING,
    ]


def _interval(ci95: tuple[float, float] | None, scale: float) -> str:
    return f"{ci95[0] * scale:.0f}-{ci95[1] * scale:.0f}" if ci95 else ""


def remarks(scores: FileScores) -> list[str]:
    """What the table doesn't say: what was not recorded, not heard, or told otherwise."""
    said = []
    if scores.unheard_replies:
        said.append(
            f"{scores.unheard_replies} dialogues end with a reply that the client never answered: it has no score"
        )
    if broken := scores.updates - scores.updates_unchecked - scores.updates_obeying_spec:
        said.append(f"{broken} updates break the rule")
    if scores.updates_unchecked:
        said.append(f"{scores.updates_unchecked} updates can't be checked: an emotion or a change is missing")
    if scores.without_score:
        said.append(f"{scores.without_score} dialogues have no final emotion and are left out of the score")
    if scores.claims_differing:
        said.append(f"{scores.claims_differing} dialogues name another final emotion than their last message has")
    if scores.missing:
        said.append("missing: " + ", ".join(f"{name} {count}" for name, count in scores.missing.items()))
    return said
