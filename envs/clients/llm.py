"""The client that a language model plays: one call appraises the reply and feels, another speaks.

After SAGE (arXiv 2505.02847). The appraising call knows the emotion as a number and the hidden need; the speaking call
knows the band that the emotion lies in and the thoughts, without any number. The number that each appraisal starts from
is the one that the turn before left. Given the recorded raw answers, every turn comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients.answers import Appraised, Opened, Spoken
from envs.clients.calls import Call, ClientModels, Question, put
from envs.clients.client import ClientFailure
from envs.clients.numbers import without_numbers
from envs.clients.prompts import need_text, persona_text, prompt, words
from envs.clients.speech_check import violations
from envs.errors import InputError
from envs.hashing import derived_seed
from envs.llm_rules import LlmRules
from envs.models.fence import fenced, nonce
from envs.models.model_client import ChatMessage
from envs.trajectory import ClientTurn, Message, Stop


class LlmClient:
    """Plays one card in one dialogue by the rules of one spec. Raises InputError when the card lacks what it needs.

    ``silent``: it feels and says nothing, as a member of an ensemble whose voice is another.
    """

    def __init__(
        self, card: PersonaCard, spec: ClientSpec, seed: int, models: ClientModels, silent: bool = False
    ) -> None:
        self.card, self.spec, self.seed, self.models, self._silent = card, spec, seed, models, silent
        self._rules = _rules_of(spec)
        self._longest = self._rules.longest[card.language]
        self._words = words(card.language)
        self._persona, self._need = persona_text(card), need_text(card)
        self._emotion = float(_start_emotion(card, self._rules))
        if self._rules.opening == "card" and card.opening is None:
            raise InputError(
                f"card {card.id} has no opening, which {spec.name} begins with; write one, or play the card by a spec "
                "whose opening is generated (client.spec=rlver-vanilla-v1)"
            )
        self._said: list[str] = []
        self._turn = 0

    async def open(self) -> ClientTurn:
        """The card's opening, or a generated one, at the start emotion."""
        calls: list[Call] = []
        notes: list[str] = []
        text = self.card.opening or ""
        if self._rules.opening == "generated" and not self._silent:
            wrong = self._wrong([self._emotion])
            question = Question("open", self._opening_prompt, self._seed_of("open"), self._longest, wrong=wrong)
            opened, calls, notes = await put(question, Opened, self.models.reply, self._rules)
            text = opened.message
        self._said.append(text)
        appraisal = {"band": self._rules.band(self._emotion), "notes": notes, "calls": _dumped(calls)}
        return ClientTurn(text=text, emotion=self._emotion, written_change=0.0, change=0.0, appraisal=appraisal)

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """Answer the last message of ``history``.

        Raises ValueError when the history is not this client's own, ClientFailure when it can't be played on.
        """
        if [m.text for m in history if m.speaker == "client"] != self._said or history[-1].speaker != "supporter":
            raise ValueError("this history was not spoken with this client")
        self._turn += 1
        appraised, retests, calls = await self._feel(history)
        written, before = float(appraised.change), self._emotion
        after = self.spec.applied(before, written)
        stop = self._stop(after)
        appraisal: dict[str, Any] = {
            "band": self._rules.band(after),
            "appraised": appraised.model_dump(mode="json"),
            "calls": _dumped(calls),
        }
        if retests:
            appraisal["retests"] = retests
        text, goodbye = "", False
        if not self._silent:
            spoken, calls, notes = await self._speak(history, appraised, before, after, stop)
            text, goodbye = spoken.message, spoken.goodbye
            appraisal["calls"] += _dumped(calls)
            appraisal |= {"goodbye": goodbye, "notes": notes}
        self._emotion = after
        self._said.append(text)
        return ClientTurn(
            text=text,
            emotion=after,
            written_change=written,
            change=after - before,
            appraisal=appraisal,
            stop=self._ended(stop, goodbye),
        )

    def speak_as(self, text: str) -> None:
        """Take ``text`` as what was said last: in an ensemble it is the voice that speaks."""
        self._said[-1] = text

    async def _feel(self, history: Sequence[Message]) -> tuple[Appraised, list[int | None], list[Call]]:
        """The appraisal that counts, the changes of its retests (None: no usable answer), and all calls."""
        model, rules, heard = self.models.appraise, self._rules, history[-1].text

        def make_prompt(cause: str | None) -> tuple[ChatMessage, ...]:
            return self._appraise_prompt(history, cause)

        question = Question("appraise", make_prompt, self._seed_of("appraise"), self._longest, heard)
        appraised, calls, _ = await put(question, Appraised, model, rules)
        retests: list[int | None] = []
        for number in range(rules.retests):
            again = Question("appraise", make_prompt, self._seed_of("retest", number), self._longest, heard)
            try:
                other, more, _ = await put(again, Appraised, model, rules)
                retests.append(other.change)
            except ClientFailure as error:
                if not error.calls:  # the model is out of reach, so that the talk can't go on either
                    raise
                more = error.calls
                retests.append(None)
            calls += more
        return appraised, retests, calls

    async def _speak(
        self, history: Sequence[Message], appraised: Appraised, before: float, after: float, stop: Stop | None
    ) -> tuple[Spoken, list[Call], list[str]]:
        leaving = stop in (Stop.SUCCESS, Stop.FAILURE)
        thoughts = self._thoughts(appraised, (before, after))

        def make_prompt(cause: str | None) -> tuple[ChatMessage, ...]:
            fence, said = self._fence(), self._fenced(history)
            values = {"history": said[:-2], "last": said[-2:], "thoughts": thoughts, "leaving": leaving}
            return self._speech_prompt(self._rules.prompts.reply, after, cause, fence=fence, **values)

        wrong = self._wrong([before, after], history)
        question = Question("reply", make_prompt, self._seed_of("reply"), self._longest, history[-1].text, wrong)
        return await put(question, Spoken, self.models.reply, self._rules)

    def _appraise_prompt(self, history: Sequence[Message], cause: str | None) -> tuple[ChatMessage, ...]:
        said, (low, high) = self._fenced(history), self._rules.change_bounds
        return prompt(
            self._rules.prompts.appraise,
            self.card.language,
            persona=self._persona,
            need=self._need,
            emotion=f"{self._emotion:g}",
            usual=self._rules.usual_change,
            low=low,
            high=high,
            fence=self._fence(),
            history=said[:-1],
            latest=said[-1],
            cause=cause,
        )

    def _opening_prompt(self, cause: str | None) -> tuple[ChatMessage, ...]:
        return self._speech_prompt(self._rules.prompts.open, self._emotion, cause)

    def _speech_prompt(self, stem: str, emotion: float, cause: str | None, **values: Any) -> tuple[ChatMessage, ...]:
        """A prompt of the call that speaks: of ``emotion`` it gets the band alone."""
        rules, band, language = self._rules, self._rules.band(emotion), self.card.language
        return prompt(
            stem,
            language,
            persona=self._persona,
            need=None if rules.hidden_intention == "never" else self._need,
            rule=rules.hidden_intention,
            band=band,
            mood=self._words.bands[band],
            questions=rules.questions,
            longest=self._longest,
            cause=cause,
            **values,
        )

    def _thoughts(self, appraised: Appraised, emotions: tuple[float, float]) -> str:
        """The appraisal as the speaking call gets it: fenced, without any number, and without the fit to a hidden
        intention that must never show."""
        fit = [] if self._rules.hidden_intention == "never" else [appraised.fit]
        text = without_numbers("\n".join([appraised.said, *fit, appraised.inner, appraised.feeling]), emotions)
        return fenced(text, self._words.speakers.thoughts, self._fence())

    def _fence(self) -> str:
        return nonce(self.seed, self._turn)

    def _fenced(self, history: Sequence[Message]) -> list[str]:
        who = self._words.speakers.model_dump()
        return [fenced(message.text, who[message.speaker], self._fence()) for message in history]

    def _wrong(
        self, emotions: Sequence[float], history: Sequence[Message] = ()
    ) -> Callable[[Spoken | Opened], list[str]]:
        known = "\n".join([self._persona, *(message.text for message in history)])

        def check(answer: Spoken | Opened) -> list[str]:
            return violations(
                answer.message,
                self.card.language,
                own=self._said,
                emotions=emotions,
                known=known,
                # Its first line says it; what may follow is how the person takes what fits it.
                need=None if self._rules.hidden_intention == "may_reveal" else self._need.split("\n")[0],
                questions=self._rules.questions,
                longest=self._longest,
            )

        return check

    def _seed_of(self, *parts: object) -> int:
        return derived_seed(self.seed, *parts, self._turn)

    def _stop(self, emotion: float) -> Stop | None:
        """What the emotion alone decides."""
        ends_below = self.spec.failure_below if self._rules.ends_below is None else self._rules.ends_below
        if self._rules.ends_at_success and emotion >= self.spec.success_at:
            return Stop.SUCCESS
        return Stop.FAILURE if emotion < ends_below else None

    def _ended(self, stop: Stop | None, goodbye: bool) -> Stop | None:
        if stop or goodbye:
            return stop or Stop.GOODBYE
        return Stop.TURN_LIMIT if self._turn >= self.spec.max_turns else None


def _rules_of(spec: ClientSpec) -> LlmRules:
    if spec.llm is None:
        raise InputError(f"client spec {spec.name} is of kind {spec.kind} and has no rules for a played client")
    return spec.llm


def _start_emotion(card: PersonaCard, rules: LlmRules) -> int:
    start = card.start_emotion if rules.start_emotion is None else rules.start_emotion
    if start is None:
        raise InputError(
            f"card {card.id} has no start_emotion; write one, or play it by a spec that sets one (client.spec=sage-v1)"
        )
    return start


def _dumped(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [call.model_dump(mode="json") for call in calls]
