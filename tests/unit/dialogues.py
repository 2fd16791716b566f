"""Hand-made cards and trajectories for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.cards import CARDS_DIR, PersonaCard, load_card
from envs.trajectory import ClientTurn, Generation, Stop, Trajectory, Turn
from trainers.evaluation import DialogueKey

MODEL_CARD = CARDS_DIR / "en" / "bus-depot-letter.yaml"


def card(card_id: str, path: Path = MODEL_CARD, **changes: Any) -> PersonaCard:
    """A card like the one at ``path``, with an id of its own and what ``changes`` says."""
    return PersonaCard.model_validate(load_card(path).model_dump() | {"id": card_id} | changes)


def percept(**changes: Any) -> dict[str, Any]:
    """What a client perceived in a reply of four words."""
    return {"acts": ["reflection"], "gibberish": 0.0, "words": 4} | changes


def trajectory(
    who: PersonaCard,
    seed: int,
    emotions: Sequence[float],
    replies: Sequence[Generation] | None = None,
    percepts: Sequence[dict[str, Any]] | None = None,
    stop: Stop = Stop.TURN_LIMIT,
) -> Trajectory:
    """A dialogue that goes from emotion 40 through ``emotions``, one turn each."""
    replies = replies or [Generation(text=f"reply {number}") for number in range(len(emotions))]
    percepts = percepts or [percept() for _ in emotions]
    before, turns = 40.0, []
    for emotion, reply, noticed in zip(emotions, replies, percepts, strict=True):
        change = emotion - before
        client = ClientTurn(
            text="Well.", emotion=emotion, written_change=change, change=change, appraisal={"perceived": noticed}
        )
        turns.append(Turn(supporter=reply, client=client))
        before = emotion
    return Trajectory(
        dialogue_id=f"evaluation/{who.id}/{seed}",
        card_id=who.id,
        card_hash=who.hash,
        spec="appraisal-v1",
        spec_hash="0" * 64,
        seed=DialogueKey(who.id, who.language, seed).dialogue_seed,
        opening=ClientTurn(text=who.script.opening, emotion=40, written_change=0, change=0),
        turns=tuple(turns),
        stop=stop,
        error="RunError: the server is gone" if stop is Stop.ERROR else None,
    )
