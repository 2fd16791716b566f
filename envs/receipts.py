"""Receipts: a trajectory file in which every line is chained by hash to the one before it.

A line is one trajectory with a ``receipt``: a hash for each turn, chained from the opening on; the receipt of the line
before; and a digest over the whole line. Whoever changes one digit has to change every later line, and the file's last
digest, which the run's manifest names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.client_spec import ClientSpec
from envs.errors import InputError, RunError
from envs.hashing import canonical, content_hash, without
from envs.trajectory import Stop, Trajectory

FIRST = "0" * 64


class ReceiptError(InputError):
    """A trajectory file doesn't hold what its receipts say. The message names the file and the line."""


@dataclass(frozen=True)
class Line:
    """One verified line of a trajectory file; ``number`` counts from 1."""

    number: int
    trajectory: Trajectory
    digest: str


def sealed(trajectory: Trajectory, previous: str) -> dict[str, Any]:
    """The JSON object of one line: the trajectory and its receipt."""
    data = trajectory.model_dump(mode="json")
    data["receipt"] = {"turns": _turn_chain(data), "previous": previous}
    data["receipt"]["digest"] = content_hash(data)
    return data


def _turn_chain(data: dict[str, Any]) -> list[str]:
    """One hash per turn, each over the hash before it and the turn; the first link is what was fixed at the start."""
    link = content_hash(without(data, "turns", "stop", "error"))
    chain = []
    for turn in data["turns"]:
        link = content_hash([link, turn])
        chain.append(link)
    return chain


class TrajectoryLog:
    """Appends trajectories to a file, each line whole and flushed before the next step may use it.

    Opening an existing file goes on from its last whole line; a torn last line (a killed run) is cut off. Raises
    RunError when the disk is full or the folder is gone, naming the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = FIRST
        if path.exists():
            self._digest = _recover(path)

    def append(self, *trajectories: Trajectory) -> None:
        """Write a line for each, and wait until they are on disk."""
        lines, digest = [], self._digest
        for trajectory in trajectories:
            data = sealed(trajectory, digest)
            digest = data["receipt"]["digest"]
            lines.append(canonical(data) + "\n")
        try:
            with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: can't be written: {error.strerror}. Free some space, then resume") from error
        self._digest = digest


def _recover(path: Path) -> str:
    whole, digest = 0, FIRST
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                break
            try:
                digest = json.loads(raw)["receipt"]["digest"]
            except (ValueError, KeyError, TypeError) as error:
                raise ReceiptError(f"{path}:{number}: is not a line with a receipt; start a new run") from error
            whole += len(raw)
    os.truncate(path, whole)
    return digest


def read_log(path: Path) -> Iterator[Line]:
    """Yield the lines of a trajectory file, each checked against its receipt. Raises ReceiptError naming the line."""
    previous = FIRST
    try:
        with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            for number, raw in enumerate(file, 1):
                line = _checked(raw, previous, f"{path}:{number}", number)
                previous = line.digest
                yield line
    except FileNotFoundError:
        raise ReceiptError(f"{path}: there is no such file; is this a finished run?") from None
    except UnicodeDecodeError as error:
        raise ReceiptError(f"{path}: is not UTF-8 text: {error}") from error


def _checked(raw: str, previous: str, where: str, number: int) -> Line:
    if not raw.endswith("\n"):
        raise ReceiptError(f"{where}: the line is torn; the run was interrupted while writing it")
    try:
        data = json.loads(raw)
        before, links = data["receipt"]["previous"], list(data["receipt"]["turns"])
        trajectory = Trajectory.model_validate(without(data, "receipt"))
        expected = sealed(trajectory, previous)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReceiptError(f"{where}: is not a trajectory with a receipt: {str(error).splitlines()[0]}") from error
    if before != previous:
        raise ReceiptError(f"{where}: does not follow the line before it; a line was changed, added or taken away")
    if canonical(expected) + "\n" != raw:
        raise ReceiptError(f"{where}: {_difference(links, expected['receipt']['turns'])}")
    return Line(number=number, trajectory=trajectory, digest=expected["receipt"]["digest"])


def _difference(written: list[Any], expected: list[str]) -> str:
    """Which turn was changed, as far as the chain of hashes tells."""
    for index, (given, wanted) in enumerate(zip(written, expected, strict=False), 1):
        if given != wanted:
            return f"turn {index} (or what stands before it) differs from its receipt"
    return "the line differs from its digest"


def check_emotions(trajectory: Trajectory, spec: ClientSpec, where: str) -> None:
    """Recompute every emotion from the change that the client wrote, under the spec's rules. Raises ReceiptError."""
    if trajectory.opening is None:
        return
    emotion = trajectory.opening.emotion
    for index, turn in enumerate(trajectory.turns, 1):
        client = turn.client
        after = spec.applied(emotion, client.written_change)
        if client.emotion != after or client.change != after - emotion:
            raise ReceiptError(
                f"{where}: turn {index}: emotion {emotion:g} with a written change of {client.written_change:+g} gives "
                f"{after:g}, not the recorded {client.emotion:g} (change {client.change:+g})"
            )
        emotion = after
    ended = trajectory.turns[-1].client.stop if trajectory.turns else None
    if trajectory.stop is not Stop.ERROR and trajectory.stop is not (ended or Stop.TURN_LIMIT):
        raise ReceiptError(f"{where}: says that it stopped by {trajectory.stop.value}, its last turn says {ended}")
