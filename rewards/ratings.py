"""Ratings of the same responses by people and by a judge, read from two CSV files and laid side by side.

A file has a row for each response: the conversation that it answers, who responded, and a column for each axis. Blank
cells are missing ratings. Columns are found by their names, whatever their case and spelling of spaces.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError

CONVERSATION = ("conversation_id", "conversation", "dialogue_id", "dialogue", "item_id", "item", "id")
RESPONDER = ("responder", "model", "system", "policy", "supporter")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?", re.ASCII)

Key = tuple[str, str]


@dataclass(frozen=True)
class Columns:
    """The columns' names, where they can't be found: conversation, responder, and the judge's name -> people's."""

    conversation: str | None = None
    responder: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratings:
    """Ratings of N responses on A axes by people and by the judge, (N, A) each; NaN is a missing rating.

    ``conversations`` and ``responders`` (N,) are names; without a responder's column ``responders`` is None.
    ``unmatched`` counts the rows that stand in one of the files only, ``ignored`` names the columns that aren't axes.
    """

    axes: tuple[str, ...]
    human: NDArray[np.float64]
    judge: NDArray[np.float64]
    conversations: tuple[str, ...]
    responders: tuple[str, ...] | None
    unmatched: int
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    path: Path
    names: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]  # line, cells by column


def read_ratings(human: Path, judge: Path, columns: Columns, axes: Sequence[str] | None = None) -> Ratings:
    """The responses that both files rate. ``axes``: which columns; none: all that both have and that hold numbers.

    Raises InputError naming the file, the line or column, and the remedy.
    """
    people, machine = _read(human, {}), _read(judge, columns.renamed)
    conversation = _key_column(people, machine, columns.conversation, CONVERSATION)
    if conversation is None:
        raise InputError(
            f"{human}: no column tells the conversations (there are: {', '.join(people.names)}); name it with --items"
        )
    responder = _key_column(people, machine, columns.responder, RESPONDER)
    keys = {conversation, responder}
    shared = [name for name in people.names if name in machine.names and name not in keys]
    chosen = _chosen(axes, shared, people, machine)
    ours, theirs = (_by_key(file, conversation, responder, chosen) for file in (people, machine))
    both = [key for key in ours if key in theirs]
    if not both:
        raise InputError(
            f"{judge}: rates none of the responses of {human}: the one has {_shown(theirs)}, the other {_shown(ours)}"
        )
    every = {*people.names, *machine.names} - keys
    return Ratings(
        axes=tuple(chosen),
        human=np.array([ours[key] for key in both], dtype=float),
        judge=np.array([theirs[key] for key in both], dtype=float),
        conversations=tuple(key[0] for key in both),
        responders=tuple(key[1] for key in both) if responder else None,
        unmatched=len(ours) + len(theirs) - 2 * len(both),
        ignored=tuple(sorted(every - set(chosen))),
    )


def plain_name(name: str) -> str:
    """A column's name in lower case, with "_" for spaces and hyphens."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def _read(path: Path, renamed: Mapping[str, str]) -> _File:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as CSV in UTF-8: {error}") from error
    if not header or not rows:
        raise InputError(f"{path}: has no rows; it needs a header and a row for each response")
    changes = {plain_name(old): plain_name(new) for old, new in renamed.items()}
    names = tuple(changes.get(plain_name(name), plain_name(name)) for name in header)
    if unknown := [old for old in changes if old not in map(plain_name, header)]:
        raise InputError(f"{path}: --map names the column {unknown[0]!r}, which is not in it: {', '.join(names)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}:1: two columns are called {twice[0]!r}; rename one")
    for line, cells in rows:
        if len(cells) != len(names):
            raise InputError(f"{path}:{line}: has {len(cells)} cells, the header has {len(names)}")
    return _File(path, names, [(line, dict(zip(names, cells, strict=True))) for line, cells in rows])


def _key_column(people: _File, machine: _File, given: str | None, usual: Sequence[str]) -> str | None:
    """The column that both files have, by the name given or by the usual ones."""
    if given is None:
        return next((name for name in usual if name in people.names and name in machine.names), None)
    for file in (people, machine):
        if plain_name(given) not in file.names:
            raise InputError(f"{file.path}: has no column {given!r}; {_instead(given, file.names)}")
    return plain_name(given)


def _instead(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(plain_name(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


def _chosen(axes: Sequence[str] | None, shared: list[str], people: _File, machine: _File) -> list[str]:
    """The columns that are axes: those asked for, or the shared ones that hold numbers in both files."""
    if axes is not None:
        for file in (people, machine):
            if missing := [axis for axis in axes if plain_name(axis) not in file.names]:
                raise InputError(
                    f"{file.path}: has no column for the axis {missing[0]!r}; {_instead(missing[0], file.names)} "
                    "Rename it, or give --map JUDGE_COLUMN=HUMAN_COLUMN"
                )
        return [plain_name(axis) for axis in axes]
    found = [name for name in shared if _holds_numbers(people, name) and _holds_numbers(machine, name)]
    if not found:
        raise InputError(
            f"{machine.path}: shares no column of numbers with {people.path}: the one has {', '.join(machine.names)}, "
            f"the other {', '.join(people.names)}; give --map JUDGE_COLUMN=HUMAN_COLUMN"
        )
    return found


def _holds_numbers(file: _File, name: str) -> bool:
    """Whether most of a column's cells that aren't blank are numbers; a comment's column is no axis."""
    cells = [row[name].strip() for _, row in file.rows if row[name].strip()]
    return 2 * sum(bool(NUMBER.fullmatch(cell)) for cell in cells) > len(cells)


def _by_key(file: _File, conversation: str, responder: str | None, axes: Sequence[str]) -> dict[Key, list[float]]:
    found: dict[Key, list[float]] = {}
    for line, row in file.rows:
        key = (row[conversation].strip(), row[responder].strip() if responder else "")
        if key in found:
            remedy = "" if responder else "; name the column that tells who responded with --responder"
            raise InputError(f"{file.path}:{line}: {' '.join(filter(None, key))!r} is rated twice{remedy}")
        found[key] = [_number(row[axis], file.path, line, axis) for axis in axes]
    return found


def _number(cell: str, path: Path, line: int, axis: str) -> float:
    text = cell.strip()
    if not text:
        return float("nan")
    if not NUMBER.fullmatch(text):
        raise InputError(f"{path}:{line}: {axis}: {text[:40]!r} is not a number; leave a missing rating blank")
    return float(text)


def _shown(found: Mapping[Key, object]) -> str:
    return repr(" ".join(filter(None, next(iter(found)))))
