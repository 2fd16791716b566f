"""The only door to a language model: what is asked, what comes back, and a scripted model for tests.

Clients, judges and card writers hold a ``ModelClient`` and know nothing of servers, keys or retries. One view serves
one dialogue, so that its deadline and its usage are that dialogue's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from envs.hashing import content_hash
from envs.trajectory import Record


class ModelError(Exception):
    """A model gave no usable answer: the server failed, the deadline passed, or the record holds none."""


class ChatMessage(Record):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


class Ask(Record):
    """One request. ``schema`` (JSON schema) constrains the answer; ``attempt`` counts from 0 when a bad answer is asked
    for again, so that the second try is another request to the cache. Temperature 0 and a seed are the rule."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    answer_schema: dict[str, Any] | None = None
    schema_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "answer"
    seed: int = 0
    attempt: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 512

    @property
    def prompt_hash(self) -> str:
        """SHA-256 over everything that is asked."""
        return content_hash(self.model_dump(mode="json"))


class Answer(Record):
    """What came back. ``text`` is raw; ``model`` is the name that receipts keep; tokens are counts, cost in the price's
    currency (None: no price known). ``cached``: taken from the response cache, which receipts don't record."""

    text: str
    model: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    cached: bool = False


class ModelClient(Protocol):
    """A language model as its users see it."""

    @property
    def model(self) -> str:
        """Name of the model, as receipts and cache keys keep it."""
        ...

    async def ask(self, ask: Ask) -> Answer:
        """Answer one request. Raises ModelError when no answer could be had within the deadline."""
        ...


class ScriptedModel:
    """Hands out given texts in order, and keeps what it was asked. An exhausted script raises ModelError."""

    def __init__(self, texts: Sequence[str], model: str = "scripted") -> None:
        self._texts = list(texts)
        self._model = model
        self.asked: list[Ask] = []

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._model

    async def ask(self, ask: Ask) -> Answer:
        """The next text."""
        self.asked.append(ask)
        if len(self.asked) > len(self._texts):
            raise ModelError(f"the script holds {len(self._texts)} answers and was asked for one more")
        return Answer(text=self._texts[len(self.asked) - 1], model=self._model)
