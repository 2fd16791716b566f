"""The record of a dialogue: the types that every floor shares.

All are frozen and serialise to one JSON line per dialogue. Emotions are 0-100; log-probabilities are in nats.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Speaker = Literal["client", "supporter"]
Emotion = Annotated[float, Field(ge=0, le=100)]


class Record(BaseModel):
    """Base of all recorded types: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stop(StrEnum):
    """Why a dialogue ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    GOODBYE = "goodbye"
    TURN_LIMIT = "turn_limit"
    ERROR = "error"


class Message(Record):
    """One thing said. ``as_seen_by`` turns speakers into chat roles: who looks is "assistant", the other is "user"."""

    speaker: Speaker
    text: str

    def as_seen_by(self, viewer: Speaker) -> dict[str, str]:
        """The chat message ``{"role", "content"}`` from ``viewer``'s side of the talk."""
        return {"role": "assistant" if self.speaker == viewer else "user", "content": self.text}


class ClientTurn(Record):
    """What the client said, what it felt, and why.

    ``written_change`` is what the client's appraisal asked for, ``change`` what clamp and range left of it, so that
    ``emotion`` = emotion before + ``change``. The opening has both at 0.
    """

    text: str
    emotion: Emotion
    written_change: float
    change: float
    appraisal: dict[str, Any] = Field(default_factory=dict)
    stop: Stop | None = None


class Generation(Record):
    """One reply as sampled. ``ids`` (T,) were sampled once and are never re-made from ``text``.

    ``logprobs`` (T,) in nats. ``prompt_ids`` are the ids that the engine says it was given. ``text`` is what the client
    hears: thoughts and special tokens are stripped. A scripted supporter has no ids. ``truncated``: cut off before an
    end-of-turn was sampled. ``raw``: the reply with its thoughts and tags, less the end-of-turn; None, and left out of
    the record, where that is ``text``.
    """

    text: str
    prompt_ids: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    policy_version: str = "scripted"
    truncated: bool = False
    raw: str | None = Field(default=None, exclude_if=lambda raw: raw is None)

    @property
    def written(self) -> str:
        """What the supporter wrote, thoughts and tags included."""
        return self.text if self.raw is None else self.raw


class Turn(Record):
    """One exchange: the supporter's reply, then the client's answer to it."""

    supporter: Generation
    client: ClientTurn


class Trajectory(Record):
    """A finished dialogue. ``error`` is set exactly when ``stop`` is ERROR; what was said until then is kept."""

    dialogue_id: str
    card_id: str
    card_hash: str
    spec: str
    spec_hash: str
    seed: int
    opening: ClientTurn | None
    turns: tuple[Turn, ...]
    stop: Stop
    error: str | None = None

    @property
    def messages(self) -> list[Message]:
        """Everything said, oldest first, beginning with the client's opening."""
        said = [Message(speaker="client", text=self.opening.text)] if self.opening else []
        for turn in self.turns:
            said.append(Message(speaker="supporter", text=turn.supporter.text))
            said.append(Message(speaker="client", text=turn.client.text))
        return said

    @property
    def emotions(self) -> list[float]:
        """Emotion after the opening and after each turn, (turns + 1,)."""
        start = [self.opening.emotion] if self.opening else []
        return start + [turn.client.emotion for turn in self.turns]

    @property
    def final_emotion(self) -> float | None:
        """Emotion after the last turn, or None when the dialogue failed: an unmeasured feeling is never 0."""
        return None if self.stop is Stop.ERROR or self.opening is None else self.emotions[-1]


class Score(Record):
    """A reward's verdict on a trajectory: ``value`` in [0, 1], or None when it could not be measured.

    ``per_turn`` (turns,) holds a share for each turn where the reward has one; ``evidence`` says why, in plain words.
    ``parts``: the scores that a total is made of, as they count; left out of the record where there are none.
    """

    name: str
    value: Annotated[float, Field(ge=0, le=1)] | None
    evidence: str = ""
    per_turn: tuple[float | None, ...] | None = None
    parts: tuple[Score, ...] = Field(default=(), exclude_if=lambda parts: not parts)
