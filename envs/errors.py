"""Errors that a person reads: each names the file, key or line and the remedy."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

FORMS = ("structured", "free text")  # how a part may be given: pydantic names the form chosen, which is no key


class InputError(Exception):
    """Something the user gave is wrong. The message says where and how to mend it; the commands exit with status 2."""


class RunError(Exception):
    """A run could not go on (server gone, disk full, budget of failures spent). The commands exit with status 1."""


def describe_validation(error: ValidationError, where: str) -> str:
    """One line per problem: the file, the key, what is wrong."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in FORMS) or "(whole file)"
        lines.append(f"{where}: {key}: {_plain(problem)}")
    return "\n".join(lines)


def _plain(problem: Any) -> str:
    kind, given = problem["type"], problem.get("input")
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return "is not a known key; remove it or correct its spelling"
    message = str(problem["msg"]).removeprefix("Value error, ")
    shown = repr(given)
    return message if kind == "value_error" else f"{message} (given: {shown[:80]})"
