"""A client that plays a recorded dialogue again: it says the recorded texts and feels the recorded changes by a rule.

With it a reward can be scored over recordings, and a run repeated without any model behind its clients. Its feelings
answer the replies that were recorded, so by default it refuses to hear others.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.recordings import EmotionRules
from envs.trajectory import ClientTurn, Message, Trajectory


class ReplayClient:
    """Plays one recorded dialogue by ``rules``. ``any_reply``: heed only how often the supporter spoke, not what was
    said, so that the feelings say nothing about the replies."""

    def __init__(self, recorded: Trajectory, rules: EmotionRules, any_reply: bool = False) -> None:
        self.recorded, self.rules, self.any_reply = recorded, rules, any_reply
        self._emotion = recorded.opening.emotion if recorded.opening else 0.0
        self._said: list[str] = []

    async def open(self) -> ClientTurn:
        """The recorded opening. Raises ValueError when the record has none."""
        if self.recorded.opening is None:
            raise ValueError(f"the record of {self.recorded.dialogue_id} has no opening")
        self._said.append(self.recorded.opening.text)
        return self.recorded.opening

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """The recorded answer to the reply that ends ``history``.

        Raises ValueError when the history is not this client's own, when the reply is not the recorded one, and when
        the record holds no further answer.
        """
        if [m.text for m in history if m.speaker == "client"] != self._said or history[-1].speaker != "supporter":
            raise ValueError("this history was not spoken with this client")
        number = len(self._said) - 1
        if number >= len(self.recorded.turns):
            raise ValueError(f"the record of {self.recorded.dialogue_id} ends after {number} turns")
        turn = self.recorded.turns[number]
        if not self.any_reply and history[-1].text != turn.supporter.text:
            raise ValueError(f"turn {number + 1} of {self.recorded.dialogue_id} was recorded with another reply")
        before, self._emotion = self._emotion, self.rules.applied(self._emotion, turn.client.written_change)
        self._said.append(turn.client.text)
        return turn.client.model_copy(update={"emotion": self._emotion, "change": self._emotion - before})
