"""``attune view``: recorded dialogues to read, with the emotion after each turn and the client's reasons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from envs.clients.answers import Appraised
from envs.errors import InputError
from envs.receipts import read_log
from envs.trajectory import Trajectory
from scripts.console import JsonFlag, command_app, print_json, stdout

app = command_app("attune view runs/demo/evaluation/tuned --first 3 --why")

TRAJECTORIES = "trajectories.jsonl"


@app.command(epilog=app.info.epilog)
def view(
    path: Annotated[Path, typer.Argument(help="A trajectories file, or the folder that holds it.", metavar="PATH")],
    first: Annotated[int, typer.Option(min=1, help="How many dialogues, in the order of the record.")] = 5,
    card: Annotated[str | None, typer.Option(help="Only dialogues with this card.")] = None,
    why: Annotated[bool, typer.Option("--why", help="Show what the client noticed and why its feeling moved.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write Markdown, for documents.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show recorded dialogues. Every line is checked against its receipt first; nothing is left out or reordered."""
    file = path / TRAJECTORIES if path.is_dir() else path
    every = [line.trajectory for line in read_log(file)]
    chosen = [trajectory for trajectory in every if card in (None, trajectory.card_id)][:first]
    if not chosen:
        raise InputError(f"{file}: holds no dialogue" + (f" with card {card!r}" if card else ""))
    if json:
        print_json({"dialogues": [trajectory.model_dump(mode="json") for trajectory in chosen]})
        return
    for trajectory in chosen:
        lines = _markdown(trajectory, why) if markdown else _terminal(trajectory, why)
        for line in lines:
            stdout().print(line, soft_wrap=markdown)


def _heading(trajectory: Trajectory) -> str:
    ended = trajectory.error or trajectory.stop.value.replace("_", " ")
    path = " → ".join(f"{emotion:g}" for emotion in trajectory.emotions)
    return f"{trajectory.dialogue_id}: {ended}; emotion {path}"


def _reasons(appraisal: Mapping[str, Any]) -> list[str]:
    """Why the feeling moved, a line each, as the kind of client recorded it."""
    if members := appraisal.get("members"):
        lines = [f"mean {appraisal['mean']:.1f}, deviation {appraisal['deviation']:.1f}"]
        for member in members:
            lines.append(f"{member['spec']}: {member['emotion']:g} ({member['change']:+g})")
            lines += [f"  {reason}" for reason in _reasons(member["appraisal"])]
        return lines
    if thought := appraisal.get("appraised"):
        texts = [f"{name}: {thought[name]}" for name in Appraised.model_fields if name != "change"]
        return [*texts, f"change: {thought['change']:+d}"]
    return [f"{reason['push']:+.2f}  {reason['reason']}" for reason in appraisal.get("why", [])]


def _terminal(trajectory: Trajectory, why: bool) -> list[Text]:
    lines = [Text(""), Text(_heading(trajectory), style="bold")]
    if trajectory.opening:
        lines.append(_said("client", trajectory.opening.text, trajectory.opening.emotion))
    for turn in trajectory.turns:
        lines.append(Text.assemble(("supporter       ", "cyan"), turn.supporter.text or "(says nothing)"))
        reasons = _reasons(turn.client.appraisal) if why else []
        lines += [Text(" " * 16 + reason, style="dim") for reason in reasons]
        lines.append(_said("client", turn.client.text, turn.client.emotion))
    return lines


def _said(who: str, text: str, emotion: float) -> Text:
    return Text.assemble((f"{who}  ", "magenta"), (f"{emotion:>5g}   ", "bold"), text)


def _markdown(trajectory: Trajectory, why: bool) -> list[Text]:
    lines = [f"### {_heading(trajectory)}", ""]
    if trajectory.opening:
        lines.append(f"- **client** ({trajectory.opening.emotion:g}): {trajectory.opening.text}")
    for turn in trajectory.turns:
        lines.append(f"- **supporter**: {turn.supporter.text or '*(says nothing)*'}")
        lines += [f"  - {reason}" for reason in (_reasons(turn.client.appraisal) if why else [])]
        lines.append(f"- **client** ({turn.client.emotion:g}): {turn.client.text}")
    return [Text(line) for line in [*lines, ""]]
