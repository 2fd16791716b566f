"""Recorded dialogues in SAGE's format (arXiv 2505.02847): read, what is missing left None, and made trajectories.

A line is one dialogue: the card it was played from, and a ``history`` in which the client is ``user`` and carries an
``emotion-point`` (0-100), the ``change`` that its appraisal asked for, and its thoughts. A dialogue that reached the
turn limit ends with a reply of the supporter that nobody heard; it is kept as ``unheard`` and is no turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from envs.cards import HiddenNeed, PersonaCard, Temperament
from envs.client_spec import ClientSpec
from envs.errors import InputError
from envs.hashing import content_hash
from envs.importers.card_map import CardMap, load_map
from envs.importers.convert import Origin, convert, value_of
from envs.importers.fields import Fields
from envs.importers.rows import Row, json_lines, read_text
from envs.trajectory import ClientTurn, Generation, Record, Speaker, Stop, Trajectory, Turn

RULES_DIR = Path(__file__).resolve().parent.parent / "configs" / "recordings"
SPEAKERS: dict[Any, Speaker] = {"user": "client", "assistant": "supporter"}
KIND = "sage"


class RecordedRules(Record):
    """The rule that a set of recordings follows. Emotions are 0-100."""

    name: str
    clamp: float
    floor: float
    cap: float
    success_at: float
    failure_below: float

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the rules."""
        return content_hash(self.model_dump(mode="json"))

    def applied(self, emotion: float, written_change: float) -> float:
        """The emotion after ``written_change``: clamped to +-clamp, then kept in [floor, cap]."""
        change = max(-self.clamp, min(self.clamp, written_change))
        return max(self.floor, min(self.cap, emotion + change))

    def obeyed(self, before: float, change: float, after: float) -> bool:
        """Whether a recorded update follows the published rule, which has no floor."""
        return abs(change) <= self.clamp and after == min(self.cap, before + change)


EmotionRules = ClientSpec | RecordedRules  # what a recording can be replayed by


def load_rules(name: str = KIND) -> RecordedRules:
    """The rule of a format of recordings, from ``configs/recordings``."""
    return RecordedRules.model_validate(yaml.safe_load((RULES_DIR / f"{name}.yaml").read_text(encoding="utf-8")))


class Said(Record):
    """One recorded message. ``emotion`` and ``change`` are the client's, None where the recording has none."""

    speaker: Speaker | None
    text: str | None
    emotion: float | None = None
    change: float | None = None
    thoughts: dict[str, Any] = Field(default_factory=dict)


class Update(Record):
    """The emotion before and after one reply, and the change that was asked for; None where it was not recorded."""

    before: float | None
    change: float | None
    after: float | None


class Recording(Record):
    """One recorded dialogue; ``where`` is its file and line, ``row`` the line as it stands there."""

    where: str
    row: dict[str, Any]
    id: str | None
    hidden_need: HiddenNeed | None
    temperament: Temperament | None
    said: tuple[Said, ...]
    claimed: float | None

    @property
    def felt(self) -> list[Said]:
        """What the client said, in order."""
        return [one for one in self.said if one.speaker == "client"]

    @property
    def final_emotion(self) -> float | None:
        """The emotion with the client's last message, or None when it was not recorded."""
        return self.felt[-1].emotion if self.felt else None

    @property
    def updates(self) -> list[Update]:
        """One for each message of the client after its first."""
        felt = self.felt
        return [Update(before=one.emotion, change=two.change, after=two.emotion) for one, two in pairwise(felt)]

    @property
    def unheard(self) -> str | None:
        """The supporter's last reply, where the dialogue ended before the client answered it."""
        return self.said[-1].text if self.said and self.said[-1].speaker == "supporter" else None

    @property
    def missing(self) -> list[str]:
        """The names of what this recording lacks, once for each time."""
        named = {"id": self.id, "need": self.hidden_need, "temperament": self.temperament}
        lacks = [name for name, value in named.items() if value is None]
        if not self.said:
            lacks.append("history")
        lacks += ["role" for one in self.said if one.speaker is None]
        lacks += ["text" for one in self.said if one.text is None]
        lacks += ["emotion" for one in self.felt if one.emotion is None]
        return lacks + ["change" for one in self.felt[1:] if one.change is None]


def read_recordings(path: Path) -> list[Recording]:
    """Every dialogue of a file of JSON lines, plain or gzipped. Raises InputError naming a broken line and its file, or
    a file that holds none."""
    card_map = load_map(KIND)
    found = [_recording(row, card_map) for row in json_lines(path, read_text(path))]
    if not found:
        raise InputError(f"{path}: holds no dialogue; give a file of recordings, one a line")
    return found


def _recording(row: Row, card_map: CardMap) -> Recording:
    fields = Fields(row.data, card_map)
    values = {key: fields.take(key, card_map.slots(key)) for key in ("hidden_need", "temperament")}
    history = row.data.get("history")
    return Recording(
        where=row.where,
        row=row.data,
        id=fields.take("id", card_map.id),
        said=tuple(_said(one) for one in history) if isinstance(history, list) else (),
        claimed=_number(row.data.get("emo_point")),
        **{key: None if text is None else value_of(key, text, card_map) for key, text in values.items()},
    )


def _said(message: Any) -> Said:
    if not isinstance(message, dict):
        return Said(speaker=None, text=None)
    planning = message.get("planning")
    planning = planning if isinstance(planning, dict) else {}
    text = message.get("content")
    thoughts = {key: value for key, value in planning.items() if key != "change"}
    thoughts |= {key: message[key] for key in ("thinking", "think") if key in message}
    role = message.get("role")
    return Said(
        speaker=SPEAKERS.get(role) if isinstance(role, str) else None,
        text=text if isinstance(text, str) else None,
        emotion=_number(message.get("emotion-point")),
        change=_number(planning.get("change", message.get("change"))),
        thoughts={key: value for key, value in thoughts.items() if isinstance(value, str)},
    )


def _number(value: Any) -> float | None:
    """A finite number, also where it is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def recorded_card(recording: Recording, origin: Origin) -> PersonaCard:
    """The card that a recording was played from, with the id that importing the collection gives it.

    It has the recording's topic as a note and lacks what only the collection tells. Raises InputError when the
    recording doesn't hold a whole card.
    """
    imported = convert([Row(recording.where, recording.row)], load_map(KIND), origin, recording.where)
    if not imported.cards:
        raise InputError(f"{recording.where}: holds no whole card: {imported.report.rejected[0].cause}")
    return imported.cards[0]


def recorded_trajectory(recording: Recording, card: PersonaCard, rules: EmotionRules | None = None) -> Trajectory:
    """The recording as a trajectory whose emotions follow ``rules`` (none: SAGE's) from the recorded start.

    A client's turn keeps its thoughts and the emotion that was recorded beside the one that the rules give. Where a
    change is missing, the recorded emotions stand in for it. A recording that can't be followed to its end is a failed
    dialogue with the cause as its error; the supporter's unheard last reply is no turn.
    """
    rules = rules or load_rules()
    turns: list[Turn] = []
    opening, error = _opening(recording.said)
    if opening:
        error = _follow(recording.said, opening.emotion, rules, turns)
    stop = _stop_of(recording, turns, rules) if error is None else Stop.ERROR
    if turns and stop not in (Stop.ERROR, Stop.TURN_LIMIT):
        last = turns[-1]
        turns[-1] = last.model_copy(update={"client": last.client.model_copy(update={"stop": stop})})
    return Trajectory(
        dialogue_id=recording.where,
        card_id=card.id,
        card_hash=card.hash,
        spec=rules.name,
        spec_hash=rules.hash,
        seed=0,
        opening=opening,
        turns=tuple(turns),
        stop=stop,
        error=error,
    )


def _opening(said: Sequence[Said]) -> tuple[ClientTurn | None, str | None]:
    first = said[0] if said else None
    if first is None or first.speaker != "client" or first.text is None:
        return None, "the recording doesn't begin with a message of the client"
    if first.emotion is None or not 0 <= first.emotion <= 100:
        return None, f"the recording begins with the emotion {first.emotion}"
    return ClientTurn(text=first.text, emotion=first.emotion, written_change=0, change=0), None


def _follow(said: Sequence[Said], emotion: float, rules: EmotionRules, turns: list[Turn]) -> str | None:
    """Append the exchanges after the opening to ``turns``; returns why it had to end early, or None."""
    for number in range(1, len(said) - 1, 2):
        reply, answer = said[number], said[number + 1]
        if reply.speaker != "supporter" or answer.speaker != "client":
            return f"messages {number + 1} and {number + 2} are no reply and answer"
        if reply.text is None or answer.text is None:
            return f"message {number + 1 if reply.text is None else number + 2} has no text"
        written = answer.change
        if written is None and answer.emotion is not None:
            written = answer.emotion - emotion
        if written is None:
            return f"message {number + 2} has neither a change nor an emotion"
        before, emotion = emotion, rules.applied(emotion, written)
        client = ClientTurn(
            text=answer.text,
            emotion=emotion,
            written_change=written,
            change=emotion - before,
            appraisal={"recorded_emotion": answer.emotion, **answer.thoughts},
        )
        turns.append(Turn(supporter=Generation(text=reply.text, policy_version="recorded"), client=client))
    if len(said) % 2 == 0 and said[-1].speaker != "supporter":
        return f"message {len(said)} is no reply of the supporter"
    return None if turns else "the recording holds no answered reply"


def _stop_of(recording: Recording, turns: Sequence[Turn], rules: EmotionRules) -> Stop:
    """Why it ended: by the emotion that was reached, else by who spoke last."""
    emotion = turns[-1].client.emotion
    if emotion >= rules.success_at:
        return Stop.SUCCESS
    if emotion < rules.failure_below:
        return Stop.FAILURE
    return Stop.TURN_LIMIT if recording.said[-1].speaker == "supporter" else Stop.GOODBYE
