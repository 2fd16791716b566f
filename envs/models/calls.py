"""Questions put to a model: asked again while the answer can't be used, with every call kept for the receipt.

What is kept is what a turn or a verdict can be recomputed from: the hash of the prompt, the model, the seed and the raw
answer of every call, with the cause where it was rejected. Whether an answer came from a cache is not kept, so that a
cached rerun gives the same receipt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from envs.models.answers import LONGEST_ANSWER
from envs.models.model_client import Ask, ModelClient
from envs.trajectory import Record


class Call(Record):
    """One answer of a model. ``rejected``: why it, or a part of it, could not be used; None: nothing more was asked."""

    asked: str
    prompt: str
    model: str
    seed: int
    attempt: int
    raw: str
    rejected: str | None = None


async def calls_until_usable(
    model: ModelClient,
    attempts: int,
    make_ask: Callable[[int, str | None], Ask],
    fault: Callable[[str], str | None],
) -> AsyncIterator[Call]:
    """Ask up to ``attempts`` times and yield each call, the last of them the first without a fault, if there is one.

    ``make_ask`` makes the request from the attempt (from 0) and the fault of the answer before; ``fault`` says why a
    raw answer can't be used, in fixed words, None where it can. Raises ModelError when the model gives no answer.
    """
    rejected: str | None = None
    for attempt in range(attempts):
        ask = make_ask(attempt, rejected)
        answer = await model.ask(ask)
        rejected = fault(answer.text)
        yield Call(
            asked=ask.schema_name,
            prompt=ask.prompt_hash,
            model=answer.model,
            seed=ask.seed,
            attempt=attempt,
            raw=answer.text[: LONGEST_ANSWER + 1],  # longer ones are refused unread, and so is what is kept of them
            rejected=rejected,
        )
        if rejected is None:
            return
