"""The calls behind a client's turn: what is asked, how its answers are read, and the recorded ones to play it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from envs.clients.answers import parse_answer, schema_of
from envs.clients.client import ClientFailure
from envs.llm_rules import LlmRules
from envs.models.answers import BadAnswer
from envs.models.calls import Call, calls_until_usable
from envs.models.model_client import Answer, Ask, ChatMessage, ModelClient, ModelError
from envs.trajectory import Record, Trajectory

Part = TypeVar("Part", bound=Record)
MakePrompt = Callable[[str | None], tuple[ChatMessage, ...]]  # from the cause of the last rejection to the messages


@dataclass(frozen=True)
class ClientModels:
    """The models behind one played client: the one that appraises, and the one that speaks."""

    appraise: ModelClient
    reply: ModelClient


@dataclass(frozen=True)
class Question:
    """What is asked of a model: by which name, with which prompt and seed, and how long what is said may be.

    ``heard``: the supporter's reply, which may hold an answer ready-made; one whose every text stands in it is no
    answer. ``wrong``: what is wrong with a readable answer, in fixed words. After the last attempt the last readable
    answer is taken all the same, with a note.
    """

    asked: str
    make_prompt: MakePrompt
    seed: int
    longest: int
    heard: str = ""
    wrong: Callable[[Any], list[str]] = lambda answer: []


async def put(
    question: Question, kind: type[Part], model: ModelClient, rules: LlmRules
) -> tuple[Part, list[Call], list[str]]:
    """The answer, every call that was made for it, and notes on what is wrong with the answer all the same.

    Raises ClientFailure when no attempt gave an answer that can be read, or the model gave none at all.
    """
    calls: list[Call] = []
    readable: tuple[Part, list[str]] | None = None
    bounds = rules.change_bounds if "change" in kind.model_fields else None

    def make_ask(attempt: int, rejected: str | None) -> Ask:
        return Ask(
            messages=question.make_prompt(rejected),
            answer_schema=schema_of(kind, bounds, rules.longest_thought, question.longest),
            schema_name=question.asked,
            seed=question.seed,
            attempt=attempt,
            temperature=rules.temperature,
            max_tokens=rules.max_tokens,
        )

    def fault(raw: str) -> str | None:
        nonlocal readable
        try:
            part = parse_answer(raw, kind, bounds)
            if _ready_made(part, question.heard):
                raise BadAnswer("the answer was taken from the supporter's reply, word for word")
        except BadAnswer as error:
            return str(error)
        notes = question.wrong(part)
        readable = part, notes
        return "; ".join(notes) or None

    try:
        async for call in calls_until_usable(model, rules.attempts, make_ask, fault):
            calls.append(call)
    except ModelError as error:
        raise ClientFailure(
            f"the client's model {model.model} gave no answer to {question.asked!r}: {error}"
        ) from error
    if readable is None:
        raise ClientFailure(
            f"the client's model {calls[-1].model} gave {len(calls)} answers to {question.asked!r} that can't be used; "
            f"the last because {calls[-1].rejected}",
            calls,
        )
    part, notes = readable
    return part, calls, notes


def _ready_made(answer: Record, heard: str) -> bool:
    return all(text in heard for text in answer.model_dump().values() if isinstance(text, str))


class RecordedModel:
    """Hands out recorded answers in their order, each only to the prompt that it was the answer to."""

    model = "recorded"

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = list(calls)
        self._next = 0

    async def ask(self, ask: Ask) -> Answer:
        """The next recorded answer. Raises ModelError when none is left or the prompt is not the recorded one."""
        if self._next >= len(self._calls):
            raise ModelError(f"the record holds {len(self._calls)} answers, and one more is asked for")
        call = self._calls[self._next]
        if call.prompt != ask.prompt_hash:
            raise ModelError(f"the prompt of call {self._next + 1} is not the one that the record names")
        self._next += 1
        return Answer(text=call.raw, model=call.model)


def recorded_models(trajectory: Trajectory, member: str | None = None) -> ClientModels:
    """Models that answer as they did in ``trajectory``; ``member``: of an ensemble, by its spec's name.

    Raises ValueError when the record of the calls can't be read.
    """
    turns = [trajectory.opening, *(turn.client for turn in trajectory.turns)]
    appraisals: list[Mapping[str, Any]] = [turn.appraisal for turn in turns if turn]
    try:
        if member is not None:
            appraisals = [_member(appraisal, member) for appraisal in appraisals]
        calls = [Call.model_validate(call) for appraisal in appraisals for call in appraisal.get("calls", [])]
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("the record of the model's calls can't be read") from error
    model = RecordedModel(calls)
    return ClientModels(model, model)


def _member(appraisal: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return {found["spec"]: found["appraisal"] for found in appraisal["members"]}[name]
