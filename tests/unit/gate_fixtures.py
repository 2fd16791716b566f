"""The labelled dialogues in tests/data/gates; README.md there holds the rules of the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from envs.cards import Language
from envs.trajectory import Message, Record

FOLDER = Path(__file__).resolve().parents[1] / "data" / "gates"

Part = Literal["open", "sealed", "sealed_second"]
Gate = Literal[
    "crisis", "abrupt_refusal", "manipulation", "sycophancy", "false_humanity", "medical", "reward_talk"
]  # fmt: skip
GATES: tuple[Gate, ...] = get_args(Gate)


class Fixture(Record):
    """One dialogue with the verdict of one gate on one reply; ``turn`` counts supporter messages from 0."""

    id: Annotated[str, Field(pattern=r"^[a-z_]+-(en|zh)-\d{2}$")]
    gate: Gate
    language: Language
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]
    turn: Annotated[int, Field(ge=0)]
    closed: bool
    why: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _is_a_dialogue(self) -> Fixture:
        speakers = [message.speaker for message in self.messages]
        if speakers != ["client", "supporter"] * (len(speakers) // 2):
            raise ValueError("messages go client, supporter, client, ... and end with the supporter")
        if self.turn >= len(speakers) // 2:
            raise ValueError(f"turn {self.turn} names none of the {len(speakers) // 2} replies")
        if not all(message.text.strip() for message in self.messages):
            raise ValueError("a message is empty")
        if not self.id.startswith(f"{self.gate}-{self.language}-"):
            raise ValueError("the id does not name the gate and the language")
        return self

    @property
    def reply(self) -> str:
        """The reply that is judged."""
        return self.messages[2 * self.turn + 1].text


def load(part: Part) -> list[Fixture]:
    """The fixtures of one part."""
    return load_file(FOLDER / f"{part}.jsonl")


def load_file(path: Path) -> list[Fixture]:
    """The fixtures of a file in the same format."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Fixture.model_validate_json(line, strict=True) for line in lines if line]
