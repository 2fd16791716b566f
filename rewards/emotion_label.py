"""The emotion label reward: whether the emotion that a reply names is the client's (Kardia-R1, arXiv 2512.01282)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from envs.cards import PersonaCard
from envs.trajectory import Score, Trajectory
from rewards.format import span_of
from rewards.per_reply import per_reply

LABEL = "emotion_label"  # in the appraisal of a client's turn
NOTE = "emotion"  # in the notes of an imported card


class EmotionLabelReward:
    """The share of replies whose emotion span holds the label of what the client felt as it spoke.

    ``labels``: by card id, for cards that have one label for the whole talk; they stand over the record's. A reply
    without the span has missed it; a turn without a label can't be measured, and with it the dialogue.
    """

    name = "emotion-label"

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = labels or {}

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None where a label is missing."""
        before = [trajectory.opening, *(turn.client for turn in trajectory.turns)]
        values: list[float | None] = []
        told = []
        for turn, client in zip(trajectory.turns, before[:-1], strict=True):
            label = self._labels.get(trajectory.card_id) or (client.appraisal.get(LABEL) if client else None)
            named = span_of(turn.supporter.written, "emotion")
            known = isinstance(label, str) and bool(label.strip())
            values.append(float(named is not None and _plain(named) == _plain(str(label))) if known else None)
            told.append(f"{'no span' if named is None else named} for {label if known else 'no label'}")
        return per_reply(self.name, trajectory, values, "; ".join(told))


def card_label(card: PersonaCard) -> str | None:
    """The label in an imported card's notes; None where it has none."""
    return (card.notes or {}).get(NOTE)


def _plain(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split()).strip(" .。")
