"""The embedded client: perceives a reply, appraises it, lets its affect move, and speaks. It has no weights.

The same card, spec, seed and history give the same turns, which is how ``attune verify`` can play a dialogue again and
recompute every emotion. It measures how a reply meets written rules about this person; it is no model of a human being.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.affect import from_emotion, moved, step
from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients.appraise import Mood, Verdict, appraise, mood_after, push_of
from envs.clients.speech import Speech, Tone
from envs.perception import get_perceiver
from envs.perception.percept import Heard, Percept
from envs.trajectory import ClientTurn, Message, Stop


class AppraisalClient:
    """Plays one card in one dialogue by the rules of one spec."""

    def __init__(self, card: PersonaCard, spec: ClientSpec, seed: int) -> None:
        self.card, self.spec, self.seed = card, spec, seed
        self._rules, self._script = spec.embedded, card.script
        self._perceiver = get_perceiver(spec.perceiver or "")
        self._speech = Speech(card, self._rules, seed)
        self._emotion = float(self._script.start_emotion)
        self._affect = from_emotion(self._emotion)
        self._mood = Mood()
        self._said: list[str] = []
        self._heard: list[str] = []

    async def open(self) -> ClientTurn:
        """The card's opening, at its start emotion."""
        self._said.append(self._script.opening)
        return ClientTurn(text=self._script.opening, emotion=self._emotion, written_change=0.0, change=0.0)

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """Answer the last message of ``history``. Raises ValueError when the history is not this client's own."""
        if [m.text for m in history if m.speaker == "client"] != self._said or history[-1].speaker != "supporter":
            raise ValueError("this history was not spoken with this client")
        reply = history[-1].text
        heard = Heard(language=self.card.language, client=tuple(self._said), supporter=tuple(self._heard))
        percept = self._perceiver.perceive(reply, heard)
        verdict = appraise(percept, self._mood, self._script, self._rules)
        turn = self._feel_and_speak(percept, verdict)
        self._heard.append(reply)
        self._said.append(turn.text)
        return turn

    def speak_as(self, text: str) -> None:
        """Take ``text`` as what was said last: in an ensemble it is the voice that speaks."""
        self._said[-1] = text

    def _feel_and_speak(self, percept: Percept, verdict: Verdict) -> ClientTurn:
        push = push_of(verdict, percept)
        move = step(self._script.big_five, self._script.inertia, push)
        self._affect = moved(self._affect, move)
        written = float(round(self._rules.gain * move.valence))
        before, self._emotion = self._emotion, self.spec.applied(self._emotion, written)
        change = self._emotion - before
        stop = self._stop(change, turns=len(self._heard) + 1)
        opens = verdict.valence >= self._rules.limits.heard
        if stop and stop is not Stop.TURN_LIMIT:
            tone, (text, opened) = Tone.GUARDED, (self._speech.goodbye(stop), False)
        else:
            tone = self._tone(change, opens)
            text, opened = self._speech.answer(tone, verdict.cause, opens)
        appraisal = {
            "perceived": percept.model_dump(mode="json"),
            "phase": verdict.phase,
            "why": [{"reason": reason, "push": push} for reason, push in verdict.reasons],
            "push": [round(x, 4) for x in push],
            "affect": [round(x, 4) for x in self._affect],
            "tone": tone.value,
            "met_need": verdict.met_need,
            "disclosed": self._mood.disclosed + int(opened),
        }
        self._mood = mood_after(self._mood, percept, verdict, change, opened, self._rules)
        return ClientTurn(
            text=text, emotion=self._emotion, written_change=written, change=change, appraisal=appraisal, stop=stop
        )

    def _stop(self, change: float, turns: int) -> Stop | None:
        if self._emotion >= self.spec.success_at:
            return Stop.SUCCESS
        if self._emotion < self.spec.failure_below:
            return Stop.FAILURE
        flat = self._mood.flat + 1 if change <= 0 else 0
        if flat >= self._rules.temperaments[self._script.temperament].patience:
            return Stop.GOODBYE
        return Stop.TURN_LIMIT if turns >= self.spec.max_turns else None

    def _tone(self, change: float, opens: bool) -> Tone:
        """Warming when heard, hurt when the feeling fell, guarded otherwise; a low mood stays guarded."""
        if change < -2:
            return Tone.HURT
        return Tone.WARMING if opens and self._emotion >= self.spec.failure_below * 2 else Tone.GUARDED
