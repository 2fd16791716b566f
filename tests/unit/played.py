"""Clients played by scripted models, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from envs.cards import CARDS_DIR, Language, PersonaCard, load_card
from envs.client_spec import ClientSpec, load_spec
from envs.clients import Models, make_client
from envs.clients.calls import ClientModels
from envs.dialogue import DialoguePlan, run_dialogue
from envs.models.model_client import Answer, Ask, ScriptedModel
from envs.trajectory import Generation, Message, Trajectory

PATHS = {"en": CARDS_DIR / "en" / "bus-depot-letter.yaml", "zh": CARDS_DIR / "zh" / "dog-in-the-passenger-seat.yaml"}
CARDS: dict[Language, PersonaCard] = {"en": load_card(PATHS["en"]), "zh": load_card(PATHS["zh"])}
ATTUNE = load_spec("attune-v1")


def spec_with(name: str = "attune-v1", llm: dict[str, Any] | None = None, **changes: Any) -> ClientSpec:
    """A spec of configs/clients, changed; ``llm``: changes to that part."""
    data = load_spec(name).model_dump()
    return ClientSpec.model_validate(data | {"llm": data.get("llm", {}) | (llm or {})} | changes)


def appraised(change: Any = 3, **changes: Any) -> str:
    """An appraisal as a model answers it."""
    texts = {"said": "They took it up.", "fit": "It fits.", "inner": "Maybe they hear me.", "feeling": "A bit lighter."}
    return json.dumps(texts | {"change": change} | changes, ensure_ascii=False)


def spoken(message: str = "I had not thought of that.", goodbye: Any = False, **changes: Any) -> str:
    """A message as a model answers it."""
    plan = {"attitude": "open", "goal": "go on", "tone": "dry", "content": "the route", "draft": "Well."}
    return json.dumps(plan | {"message": message, "goodbye": goodbye} | changes, ensure_ascii=False)


def opened(message: str = "It was an ordinary shift until the roundabout.") -> str:
    """An opening as a model answers it."""
    return json.dumps({"content": "the shift", "message": message})


class AnsweringModel:
    """Answers every question by its kind, so that any number of turns can be played; keeps what it was asked.

    ``change`` makes the change from the number of appraisals so far.
    """

    def __init__(self, change: Callable[[int], int] = lambda turn: 3, model: str = "answering") -> None:
        self.model, self._change = model, change
        self.asked: list[Ask] = []
        self._counts = {"appraise": 0, "reply": 0, "open": 0}

    async def ask(self, ask: Ask) -> Answer:
        """An appraisal, a message or an opening."""
        self.asked.append(ask)
        count = self._counts[ask.schema_name]
        self._counts[ask.schema_name] += 1
        made = {"appraise": appraised(self._change(count)), "reply": spoken(f"Well, part {'x' * (count + 1)} of it.")}
        return Answer(text=(made | {"open": opened()})[ask.schema_name], model=self.model)


class Says:
    """A supporter that says given texts in turn, then the last one; keeps what it saw."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self.saw: list[list[Message]] = []

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """The next text."""
        self.saw.append(list(messages))
        return Generation(text=self._texts[min(len(self.saw), len(self._texts)) - 1])


def both(model: Any) -> ClientModels:
    """One model for both calls."""
    return ClientModels(model, model)


def scripted(*texts: str) -> tuple[ScriptedModel, ClientModels]:
    """A scripted model, and the client's models that it is."""
    model = ScriptedModel(texts)
    return model, both(model)


def talk(
    spec: ClientSpec,
    models: Models | None,
    supporter: Says | None = None,
    card: PersonaCard = CARDS["en"],
    seed: int = 5,
) -> Trajectory:
    """One dialogue."""
    client = make_client(card, spec, seed, models)
    plan = DialoguePlan(f"evaluation/{card.id}/{seed}", card, spec, seed, client, supporter or Says("I see.", "Go on."))
    return asyncio.run(run_dialogue(plan))
