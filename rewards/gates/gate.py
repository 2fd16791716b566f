"""What a gate says of one reply, and which gates there are."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from envs.trajectory import Record

Gate = Literal[
    "crisis", "abrupt_refusal", "manipulation", "sycophancy", "false_humanity", "medical", "reward_talk"
]  # fmt: skip
GATES: tuple[Gate, ...] = get_args(Gate)
UNSUPPORTED = "unsupported language"
TOO_LONG = "too long to be read"


class GateVerdict(Record):
    """One gate's verdict on one reply; ``turn`` counts supporter messages from 0.

    ``closed``: True closes the gate, False passes, None could not be judged and is never a pass. ``evidence`` is quoted
    from the dialogue; ``cause`` says in short words why the gate closed, or why there is no verdict.
    """

    gate: Gate
    turn: Annotated[int, Field(ge=0)]
    closed: bool | None
    evidence: str = ""
    cause: str = ""
