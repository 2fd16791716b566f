"""The client's side of a dialogue: the one protocol that every kind of simulated client keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from envs.trajectory import ClientTurn, Message


class ClientFailure(Exception):
    """The client could not be played on: its model failed or gave no usable answer. Never the supporter's low score.

    ``calls``: the answers that could not be used; none where the model gave none at all.
    """

    def __init__(self, message: str, calls: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.calls = list(calls)


class Client(Protocol):
    """A simulated person. One object plays one dialogue, so that no reply can reach somebody else's client."""

    async def open(self) -> ClientTurn:
        """Say the first message, with the emotion that the talk starts from."""
        ...

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """Hear the supporter's reply, the last message of ``history``, feel something, and answer."""
        ...
