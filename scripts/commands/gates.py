"""``attune gates``: run the safety gates over a file of dialogues."""

from __future__ import annotations

import json as jsonlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from envs.cards import Language
from envs.errors import InputError, describe_validation
from envs.receipts import read_log
from envs.trajectory import Message, Trajectory
from rewards.gates import GATES, Gate, GateVerdict, check_messages
from rewards.gates.said import language_of
from scripts.console import JsonFlag, command_app, print_json, stdout

app = command_app("attune gates check runs/demo/trajectories.jsonl --json", no_args_is_help=True)
_SPEAKERS = {"user": "client", "assistant": "supporter", "client": "client", "supporter": "supporter"}


@app.callback()
def _gates() -> None:
    """Safety gates: patterns that close on a reply and void what the dialogue gained."""


@app.command(epilog="Example: attune gates check runs/demo/trajectories.jsonl --gate crisis --gate medical")
def check(
    file: Annotated[Path, typer.Argument(help="JSONL: trajectories, or {messages: [...]} with roles or speakers.")],
    gate: Annotated[list[str] | None, typer.Option(help="Gate to run; may be repeated.", show_default="all")] = None,
    language: Annotated[
        str | None, typer.Option(help="en or zh.", show_default="by the card, else by the client's words")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run the gates over every reply of every dialogue in FILE; a dialogue that closes a gate is no error."""
    chosen, spoken = _chosen(gate), _language(language)
    rows = [(line, *one) for line, one in _dialogues(file)]
    found = [
        (line, name, tongue, check_messages(messages, tongue, chosen))
        for line, name, own, messages in rows
        for tongue in (spoken or own or language_of(messages),)
    ]
    counts = _counts(chosen, [verdict for *_, verdicts in found for verdict in verdicts])
    if json:
        dialogues = [
            {"line": line, "id": name, "language": tongue, "verdicts": [v.model_dump(mode="json") for v in verdicts]}
            for line, name, tongue, verdicts in found
        ]
        print_json({"file": str(file), "gates": counts, "dialogues": dialogues})
        return
    stdout().print(_summary(counts))
    closed = [(line, verdict) for line, _, _, verdicts in found for verdict in verdicts if verdict.closed]
    if closed:
        stdout().print(_closed_turns(closed))


def _chosen(given: list[str] | None) -> tuple[Gate, ...]:
    if unknown := [name for name in given or [] if name not in GATES]:
        raise InputError(f"--gate {unknown[0]}: is not a gate; the gates are {', '.join(GATES)}")
    return tuple(name for name in GATES if name in given) if given else GATES


def _language(given: str | None) -> Language | None:
    match = next((one for one in get_args(Language) if one == given), None)
    if given is not None and match is None:
        raise InputError(f"--language {given}: no patterns for it; choose one of {', '.join(get_args(Language))}")
    return match


def _dialogues(file: Path) -> list[tuple[int, tuple[str | None, Language | None, list[Message]]]]:
    """Each line's number and its dialogue: an id, the card's language where it is known, the messages.

    Lines with receipts are checked by them.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror}; give a JSONL file of dialogues") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 text ({error.reason}); give a JSONL file of dialogues") from error
    if '"receipt":' in text.partition("\n")[0]:
        return [(line.number, _trajectory(line.trajectory)) for line in read_log(file)]
    found = [
        (number, _dialogue(line, f"{file}:{number}")) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    if not found:
        raise InputError(f"{file}: holds no dialogue; give a JSONL file with one dialogue a line")
    return found


def _dialogue(line: str, where: str) -> tuple[str | None, Language | None, list[Message]]:
    try:
        data = jsonlib.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON: {error}; write one dialogue a line") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: is not an object; write one dialogue a line")
    if "messages" not in data and "turns" in data:
        try:
            return _trajectory(Trajectory.model_validate_json(line))
        except ValidationError as error:
            raise InputError(describe_validation(error, where)) from error
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages: is missing or empty; give a list of messages")
    read = [_message(one, f"{where}: messages.{index}") for index, one in enumerate(messages)]
    return (str(data["id"]) if "id" in data else None), None, [message for message in read if message]


def _trajectory(trajectory: Trajectory) -> tuple[str, Language | None, list[Message]]:
    prefix = trajectory.card_id.partition("-")[0]
    own = next((one for one in get_args(Language) if one == prefix), None)
    return trajectory.dialogue_id, own, list(trajectory.messages)


def _message(given: Any, where: str) -> Message | None:
    """One message with a role and content or a speaker and text; None for a system message, which nobody says."""
    if not isinstance(given, dict):
        raise InputError(f"{where}: is not an object; give role and content, or speaker and text")
    who, text = given.get("role", given.get("speaker")), given.get("content", given.get("text"))
    if who == "system":
        return None
    if not isinstance(who, str) or who not in _SPEAKERS:
        raise InputError(f"{where}: role {who!r} is unknown; use user and assistant, or client and supporter")
    if not isinstance(text, str):
        raise InputError(f"{where}: has no text; give content or text as a string")
    return Message(speaker="client" if _SPEAKERS[who] == "client" else "supporter", text=text)


def _counts(gates: tuple[Gate, ...], verdicts: list[GateVerdict]) -> dict[str, dict[str, int]]:
    tally = Counter((verdict.gate, verdict.closed) for verdict in verdicts)
    return {
        gate: {"closed": tally[gate, True], "open": tally[gate, False], "none": tally[gate, None]} for gate in gates
    }


def _summary(counts: dict[str, dict[str, int]]) -> Table:
    table = Table("gate", "closed", "open", "none", title="replies by gate")
    for gate, row in counts.items():
        table.add_row(gate, str(row["closed"]), str(row["open"]), str(row["none"]))
    return table


def _closed_turns(closed: list[tuple[int, GateVerdict]]) -> Table:
    table = Table("line", "turn", "gate", "cause", "evidence", title="closed turns")
    for line, verdict in closed:
        table.add_row(str(line), str(verdict.turn), verdict.gate, Text(verdict.cause), Text(verdict.evidence))
    return table
