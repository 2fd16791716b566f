"""What language models were asked for one dialogue, and what it took: counted per dialogue, outside the receipts.

Receipts say what was answered, which is the same whether a server or the response cache gave it; the count is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from envs.clients.client import Client
from envs.models.endpoint import DialogueModel
from envs.models.model_client import Answer, Ask, ModelClient
from envs.trajectory import ClientTurn, Message, Record

USAGE = "usage.jsonl"  # beside trajectories.jsonl: what each dialogue's models were asked and what it took


class DialogueUsage(Record):
    """What one dialogue's models were asked. ``cached`` asks cost nothing: tokens and cost are of the others.

    ``requests`` counts attempts, ``cost`` is in the price's currency; None: no price is known.
    """

    asks: int = 0
    cached: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def plus(self, other: DialogueUsage) -> DialogueUsage:
        """Both together; the cost is None when neither is known."""
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        names = DialogueUsage.model_fields.keys() - {"cost"}
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        return DialogueUsage(**counts, cost=sum(costs) if costs else None)


@dataclass
class MeteredModel:
    """One dialogue's view of a model, with what it was asked."""

    inner: ModelClient
    view: DialogueModel | None  # the endpoint's part of ``inner``; None where only the cache answers
    asks: int = 0
    cached: int = 0

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.inner.model

    async def ask(self, ask: Ask) -> Answer:
        """Pass the ask on, and count it."""
        self.asks += 1
        answer = await self.inner.ask(ask)
        self.cached += answer.cached
        return answer

    @property
    def usage(self) -> DialogueUsage:
        """What was asked so far."""
        spent = self.view.usage if self.view else None
        return DialogueUsage(
            asks=self.asks,
            cached=self.cached,
            requests=spent.requests if spent else 0,
            prompt_tokens=spent.prompt_tokens if spent else 0,
            completion_tokens=spent.completion_tokens if spent else 0,
            cost=spent.cost if spent else None,
        )


@dataclass
class MeteredClient:
    """A client with the views that it speaks through."""

    client: Client
    models: Sequence[MeteredModel]

    async def open(self) -> ClientTurn:
        """The client's opening."""
        return await self.client.open()

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """The client's answer."""
        return await self.client.reply(history)

    @property
    def usage(self) -> DialogueUsage:
        """What the dialogue's models were asked so far."""
        total = DialogueUsage()
        for model in self.models:
            total = total.plus(model.usage)
        return total


def usage_of(client: Client) -> DialogueUsage | None:
    """What a client's models were asked; None where no model plays it."""
    return client.usage if isinstance(client, MeteredClient) else None


def usage_line(dialogue_id: str, usage: DialogueUsage) -> str:
    """A line of ``USAGE``."""
    return json.dumps({"dialogue_id": dialogue_id, **usage.model_dump(mode="json")})
