"""Reading a run's files to verify them: what can't be read is a Problem that names the file and the line. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from envs.errors import describe_validation
from envs.receipts import Line, ReceiptError, read_log
from trainers.manifest import Problem

M = TypeVar("M", bound=BaseModel)


def line_of(text: str, keys: Sequence[str | int]) -> int | None:
    """The line (from 1) on which the value under ``keys`` begins in a JSON text that is laid out over lines."""
    lines, at = text.split("\n"), 0
    for key in (key for key in keys if isinstance(key, str)):
        at = next((n for n in range(at, len(lines)) if f'"{key}":' in lines[n]), at)
    return at + 1


def recorded_dialogues(folder: Path, name: str) -> Iterator[Line]:
    """The dialogues of a log, receipts checked. Raises Problem."""
    try:
        yield from read_log(folder / name)
    except ReceiptError as error:
        message = str(error).removeprefix(str(folder / name))
        place = re.match(r":(\d+): (.*)", message, re.DOTALL)
        line, text = (int(place[1]), place[2]) if place else (None, message.removeprefix(": "))
        raise Problem(name, line, text) from error


def parsed(kind: type[M], data: Any, name: str, line: int | None = None) -> M:
    """``data`` as a ``kind``. Raises Problem."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise Problem(name, line, describe_validation(error, kind.__name__)) from error


def recorded_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file. Raises Problem."""
    return _object((folder / name).read_bytes(), name, None)


def recorded_lines(folder: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a file of JSON lines, with their line numbers from 1. Raises Problem."""
    for number, raw in enumerate((folder / name).read_bytes().splitlines(), 1):
        yield number, _object(raw, name, number)


def _object(raw: bytes, name: str, line: int | None) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except ValueError as error:
        raise Problem(name, line, f"is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Problem(name, line, "is not a JSON object")
    return data


def recorded_yaml(folder: Path, name: str) -> Any:
    """What a YAML file holds. Raises Problem."""
    try:
        return yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise Problem(name, None, f"can't be read as YAML: {error}") from error
