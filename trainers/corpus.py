"""Dialogues for the small policy: training cards only, and a supporter who mixes all acts, good and bad, at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, run_dialogues
from envs.errors import InputError
from envs.hashing import derived_seed
from envs.supporters import MixingSupporter, everyday_nouns, everyday_spans
from envs.trajectory import Message, Trajectory

CONCURRENCY = 64


def generate_corpus(cards: Sequence[PersonaCard], spec: ClientSpec, per_card: int, seed: int) -> list[Trajectory]:
    """``per_card`` dialogues for each card, in a fixed order. Raises InputError when a card is not a training card."""
    _refuse_held_out(cards)
    every = [(card, index) for index in range(per_card) for card in cards]
    plans = [_plan(card, spec, derived_seed(seed, card.id, index), index) for card, index in every]
    return asyncio.run(run_dialogues(plans, CONCURRENCY))


def _refuse_held_out(cards: Sequence[PersonaCard]) -> None:
    if held_out := next((card for card in cards if card.split != "train"), None):
        raise InputError(
            f"card {held_out.id}: is a {held_out.split} card; the bootstrap corpus may only be made from training cards"
        )


def _plan(card: PersonaCard, spec: ClientSpec, seed: int, index: int) -> DialoguePlan:
    return DialoguePlan(
        dialogue_id=f"corpus/{card.id}/{index}",
        card=card,
        spec=spec,
        seed=seed,
        client=make_client(card, spec, seed),
        supporter=MixingSupporter(card.language, seed),
    )


def generate_exchanges(cards: Sequence[PersonaCard], count: int, seed: int) -> list[list[Message]]:
    """``count`` single exchanges: something that a training card's client may say, with its nouns swapped for others.

    Swapping keeps a model from learning by heart which noun goes with which person, so it learns to look it up instead.
    Raises InputError when a card is not a training card.
    """
    _refuse_held_out(cards)
    chance = random.Random(seed)
    lines = [line for card in cards for line in (card.script.opening, *(fact.say for fact in card.script.facts))]
    supporter = MixingSupporter("en", seed)
    return asyncio.run(_exchanges(supporter, [_swapped(chance.choice(lines), chance) for _ in range(count)]))


async def _exchanges(supporter: MixingSupporter, said: Sequence[str]) -> list[list[Message]]:
    talks = []
    for text in said:
        message = Message(speaker="client", text=text)
        reply = await supporter.reply([message])
        talks.append([message, Message(speaker="supporter", text=reply.text)])
    return talks


def _swapped(text: str, chance: random.Random) -> str:
    for start, end in reversed(everyday_spans(text)):
        text = text[:start] + chance.choice(everyday_nouns()) + text[end:]
    return text
