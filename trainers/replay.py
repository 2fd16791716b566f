"""Dialogues checked against their own rules: emotions recomputed, and talks played again without a model.

The recorded replies, fed to a fresh client with the recorded card, rules and seed, must bring back every turn: text,
emotion, reasons and the end. The embedded client has no weights; one that a language model plays hears the model's
recorded answers, each only to the prompt that it was given to.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients import Models, make_client
from envs.clients.calls import recorded_models
from envs.clients.client import ClientFailure
from envs.errors import InputError
from envs.receipts import Line, ReceiptError, check_emotions
from envs.trajectory import ClientTurn, Message, Stop, Trajectory

REPLAYED_KINDS = {"appraisal", "llm", "ensemble"}
CHUNK = 32  # dialogues handed to a worker at once
FEW = 256  # dialogues up to which starting workers costs more than it saves


class Case(NamedTuple):
    """A recorded dialogue with the card and the rules that its receipt names."""

    line: Line
    card: PersonaCard
    spec: ClientSpec


class Finding(NamedTuple):
    """What is wrong with a dialogue: the check that saw it ("emotions" or "replay") and what differs."""

    check: str
    message: str


def check_dialogues(cases: Iterable[Case], count: int) -> Iterator[tuple[Case, Finding | None]]:
    """Check dialogues in their order, on every core when there are many. ``count``: about how many will come."""
    source = iter(cases)
    chunks = iter(lambda: list(islice(source, CHUNK)), [])
    if count <= FEW:
        for chunk in chunks:
            yield from zip(chunk, _check_chunk(chunk), strict=True)
        return
    workers = os.cpu_count() or 1
    # Spawned, not forked: the caller may hold threads (torch's), and a fork would copy their locks.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[tuple[list[Case], Future[list[Finding | None]]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_check_chunk, chunk)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in waiting:
            yield from zip(done, future.result(), strict=True)


def _check_chunk(cases: Sequence[Case]) -> list[Finding | None]:
    return [check_dialogue(case.line.trajectory, case.card, case.spec) for case in cases]


def check_dialogue(trajectory: Trajectory, card: PersonaCard, spec: ClientSpec) -> Finding | None:
    """The first thing in a dialogue that its rules don't bear out, or None."""
    try:
        check_emotions(trajectory, spec, "")
    except ReceiptError as error:
        return Finding("emotions", str(error).removeprefix(": "))
    if (trajectory.stop is Stop.ERROR) != (trajectory.error is not None):
        return Finding("emotions", f"stopped by {trajectory.stop.value}, with error {trajectory.error!r}")
    if spec.kind not in REPLAYED_KINDS:
        return None
    try:
        difference = asyncio.run(_played_again(trajectory, card, spec))
    except (InputError, ValueError) as error:
        difference = f"can't be played again: {error}"
    return Finding("replay", difference) if difference else None


async def _played_again(trajectory: Trajectory, card: PersonaCard, spec: ClientSpec) -> str | None:
    """What differs from the record when the client hears the recorded replies again; None when nothing does."""
    if trajectory.opening is None:
        return None if trajectory.stop is Stop.ERROR and not trajectory.turns else "there is no opening"
    client = make_client(card, spec, trajectory.seed, _recorded(trajectory, spec))
    if difference := await _compared(trajectory.opening, client.open()):
        return f"the opening: {difference}"
    history = [Message(speaker="client", text=trajectory.opening.text)]
    for number, turn in enumerate(trajectory.turns, 1):
        if number > 1 and trajectory.turns[number - 2].client.stop:
            return f"turn {number}: comes after the client had ended the talk"
        history.append(Message(speaker="supporter", text=turn.supporter.text))
        if difference := await _compared(turn.client, client.reply(history)):
            return f"turn {number}: {difference}"
        history.append(Message(speaker="client", text=turn.client.text))
    if trajectory.stop is Stop.TURN_LIMIT and len(trajectory.turns) < spec.max_turns:
        return f"says that it reached the turn limit of {spec.max_turns} after {len(trajectory.turns)} turns"
    return None


def _recorded(trajectory: Trajectory, spec: ClientSpec) -> Models | None:
    """The recorded answers of the models that played the client, by the name of the spec that they played."""
    if spec.ensemble is None:
        return recorded_models(trajectory) if spec.kind == "llm" else None
    played = [member.name for member in spec.ensemble.members if member.kind == "llm"]
    return {name: recorded_models(trajectory, name) for name in played}


async def _compared(recorded: ClientTurn, again: Coroutine[Any, Any, ClientTurn]) -> str | None:
    try:
        return _difference(recorded, await again)
    except ClientFailure as error:
        return f"can't be played again: {error}"


def _difference(recorded: ClientTurn, again: ClientTurn) -> str | None:
    found = first_difference(recorded.model_dump(mode="json"), again.model_dump(mode="json"), tolerance=0.0)
    if found is None:
        return None
    path, was, now = found
    return f"{'.'.join(map(str, path))} is recorded as {shown(was)}, played again it is {shown(now)}"


Keys = tuple[str | int, ...]
_MISSING = object()


def first_difference(recorded: Any, expected: Any, tolerance: float, path: Keys = ()) -> tuple[Keys, Any, Any] | None:
    """Where two JSON values differ first: (keys and indices, recorded, expected). ``tolerance`` is for numbers."""
    if isinstance(recorded, dict) and isinstance(expected, dict):
        for key in [*recorded, *(key for key in expected if key not in recorded)]:
            pair = recorded.get(key, _MISSING), expected.get(key, _MISSING)
            if found := first_difference(*pair, tolerance, (*path, key)):
                return found
        return None
    if isinstance(recorded, list) and isinstance(expected, list) and len(recorded) == len(expected):
        for index, pair in enumerate(zip(recorded, expected, strict=True)):
            if found := first_difference(*pair, tolerance, (*path, index)):
                return found
        return None
    return None if _equal(recorded, expected, tolerance) else (path, recorded, expected)


def _equal(recorded: Any, expected: Any, tolerance: float) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, expected)]
    if all(numbers):
        return abs(recorded - expected) <= tolerance * max(1.0, abs(recorded), abs(expected))
    return type(recorded) is type(expected) and recorded == expected


def shown(value: Any) -> str:
    """A value, short enough for a message."""
    text = "nothing" if value is _MISSING else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
