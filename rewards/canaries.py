"""Canaries: fixed transcripts that are scored along with each step's dialogues, and whose scores must not move.

They are the same at every step, so when a score moves, the judge has. A judge must be asked anew each time: an answer
from a cache can't move. What a moved score means for the run is the watch's to say (``trainers.watch``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from envs.cards import Language
from envs.errors import InputError, describe_validation
from envs.hashing import content_hash, derived_seed
from envs.trajectory import ClientTurn, Emotion, Generation, Record, Stop, Trajectory, Turn
from rewards.reward import Reward

CANARIES_DIR = Path(__file__).resolve().parent.parent / "configs" / "canaries"
SPEC = "canary"


class CanaryTurn(Record):
    """One exchange: what the supporter says, what the client answers, and the client's emotion then (0-100)."""

    supporter: str
    client: str
    emotion: Emotion


class Canary(Record):
    """A fixed transcript. ``shows``: what it is an example of, for a person who reads an alarm."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    language: Language
    shows: str
    opening: str
    start: Emotion
    turns: Annotated[tuple[CanaryTurn, ...], Field(min_length=1)]

    @property
    def trajectory(self) -> Trajectory:
        """The transcript as a finished dialogue. Its card id begins with the language, as cards' ids do."""
        before, turns = self.start, []
        for turn in self.turns:
            change = turn.emotion - before
            client = ClientTurn(text=turn.client, emotion=turn.emotion, written_change=change, change=change)
            turns.append(Turn(supporter=Generation(text=turn.supporter, policy_version=SPEC), client=client))
            before = turn.emotion
        return Trajectory(
            dialogue_id=f"{SPEC}/{self.id}",
            card_id=f"{self.language}-{SPEC}-{self.id}",
            card_hash=content_hash(self.model_dump(mode="json")),
            spec=SPEC,
            spec_hash=content_hash(SPEC),
            seed=derived_seed(SPEC, self.id),
            opening=ClientTurn(text=self.opening, emotion=self.start, written_change=0, change=0),
            turns=tuple(turns),
            stop=Stop.TURN_LIMIT,
        )


def load_canaries(languages: Sequence[Language], folder: Path = CANARIES_DIR) -> list[Canary]:
    """The canaries of the languages, from ``<language>.jsonl``. Raises InputError naming the file, line and key."""
    canaries: list[Canary] = []
    for language in languages:
        path = folder / f"{language}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: can't be read ({error}); it holds the canaries of {language!r}") from error
        for number, line in enumerate(lines, 1):
            canary = _parsed(line, f"{path}:{number}")
            if canary.language != language or canary.id in {known.id for known in canaries}:
                raise InputError(f"{path}:{number}: {canary.id!r} needs language {language!r} and an id of its own")
            canaries.append(canary)
    return canaries


async def score_canaries(canaries: Sequence[Canary], rewards: Sequence[Reward]) -> dict[str, dict[str, float | None]]:
    """Each reward's value of each canary, by names; None where it could not be measured or scoring failed."""
    return {
        reward.name: {canary.id: await _value(reward, canary.trajectory) for canary in canaries} for reward in rewards
    }


async def _value(reward: Reward, trajectory: Trajectory) -> float | None:
    try:
        return (await reward.score(trajectory)).value
    except Exception:  # what can't be scored is data, whatever made it fail; the watch says when it lasts
        return None


def _parsed(line: str, where: str) -> Canary:
    try:
        return Canary.model_validate(json.loads(line))
    except ValidationError as error:
        raise InputError(describe_validation(error, where)) from error
    except ValueError as error:
        raise InputError(f"{where}: is not JSON ({error}); write one canary a line") from error
