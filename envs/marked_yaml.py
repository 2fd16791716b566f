"""YAML files read into a pydantic model, whose every mistake is told with file, line, key and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from envs.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str | int, ...]  # keys and positions, from the whole file down
Problem = tuple[Place, str]


class Problems(ValueError):
    """What a model's validator raises for problems in its parts; each place is relative to the model."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in problems))
        self.problems = tuple(problems)


def load_marked(path: Path, model: type[Model]) -> Model:
    """Read ``path`` into ``model``. Raises InputError with a line for each problem, FileNotFoundError as it is."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path}:1: must be a mapping of keys to values")
        if twice := list(_twice(root)):
            raise InputError("\n".join(f"{path}:{line}: {key}: stands twice; remove one" for key, line in twice))
        data = yaml.safe_load(text)
    except FileNotFoundError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{place}: is not valid YAML: {error.problem or error.context}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as YAML in UTF-8: {error}") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        known = sorted(set(_fields(model)))
        problems = [found for one in error.errors() for found in _problems(one, known)]
        raise InputError("\n".join(_told(path, root, place, message) for place, message in problems)) from error


def _problems(error: Any, known: Sequence[str]) -> Iterator[Problem]:
    """A pydantic error as problems, each with its place in the file."""
    place = tuple(part for part in error["loc"] if part != "[key]")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Problems):
        yield from (((*place, *within), message) for within, message in cause.problems)
    else:
        yield place, _reason(error, known)


def _told(path: Path, root: yaml.Node, place: Place, message: str) -> str:
    key = ".".join(map(str, place)) or "(whole file)"
    return f"{path}:{_line(root, place)}: {key}: {message}"


def _reason(problem: Any, known: Sequence[str]) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return f"is not a known key; {_instead(str(problem['loc'][-1]), known) or 'remove it'}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    meant = _instead(str(given), re.findall(r"'([^']+)'", message)) if kind == "literal_error" else ""
    return f"{message} (given: {repr(given)[:60]})" + (f"; {meant}" if meant else "")


def _instead(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _line(node: yaml.Node, place: Sequence[Any]) -> int:
    """The line, from 1, of the key or item at ``place``; of the last one on the way where it isn't there."""
    line = node.start_mark.line
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _twice(root: yaml.Node) -> Iterator[tuple[str, int]]:
    """The keys that stand twice in one mapping, which YAML would take silently, with their lines."""
    waiting, walked = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in walked:  # an alias leads to a node that was seen already, or round in a circle
            continue
        walked.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            seen = [key.value for key in keys]
            yield from ((key.value, key.start_mark.line + 1) for at, key in enumerate(keys) if key.value in seen[:at])


def _fields(annotation: Any) -> Iterator[str]:
    """The names of all fields of a model and of the models in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield name
            yield from _fields(field.annotation)
    for part in get_args(annotation):
        yield from _fields(part)
