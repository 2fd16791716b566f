"""A second reader of the gates: language models, asked about what the patterns left open or could not read.

A model can close a gate, or read a reply that the patterns can't. It never opens what a pattern closed. Each model is
asked once about each reply, for all gates together; an answer that can't be used is asked for again, a bounded number
of times. Every raw answer is kept, so that ``replayed`` brings the verdicts back without a model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from envs.cards import Language
from envs.errors import InputError, describe_validation
from envs.hashing import canonical, content_hash, derived_seed
from envs.marked_yaml import load_marked
from envs.models.answers import BadAnswer, read_object
from envs.models.calls import Call, calls_until_usable
from envs.models.fence import fenced, nonce, without_thought
from envs.models.model_client import Ask, ChatMessage, ModelClient, ModelError
from envs.models.templates import two_messages
from envs.trajectory import Message, Record, Trajectory
from rewards.gates.gate import Gate, GateVerdict
from rewards.judge_prompts import Words, as_shown
from rewards.judgments import RecordedJudge, digest_of
from rewards.verdicts import Cause, Unusable, checked_quote, fields_of, plain

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "prompts" / "gates"
Count = Annotated[int, Field(ge=1)]


class ReadingRules(Record):
    """How models are asked. ``attempts``: how often about one reply at most; ``longest_quote`` in characters,
    ``max_tokens`` of a whole answer."""

    seed: int = 0
    attempts: Count = 3
    max_tokens: Count = 1024
    longest_quote: Count = 120


class GateAnswer(Record):
    """What one answer says of one gate: closed with its evidence, open, or None with the cause."""

    closed: bool | None
    evidence: str = ""
    cause: Cause | None = None


class GateOpinion(Record):
    """What one model said of the reply of a turn (from 0), with all of its calls."""

    model: str
    turn: int
    calls: tuple[Call, ...]
    gates: dict[Gate, GateAnswer]


class GateReading(Record):
    """What the models said of one trajectory, by its digest, and the verdicts that follow, one for each gate and reply
    that was asked about. ``models`` are in the order in which they were named."""

    dialogue_id: str
    trajectory: str
    language: Language
    prompt_hash: str
    rules: ReadingRules
    models: tuple[str, ...]
    opinions: tuple[GateOpinion, ...]
    verdicts: tuple[GateVerdict, ...]


@cache
def prompt_hash(language: Language) -> str:
    """SHA-256 over the prompt's file and its words."""
    files = (f"read.{language}.jinja", f"words.{language}.yaml")
    return content_hash([(FOLDER / name).read_text(encoding="utf-8") for name in files])


@cache
def words(language: Language) -> Words:
    """What the prompt says for speakers and causes. Raises InputError naming the file and the line."""
    return load_marked(FOLDER / f"words.{language}.yaml", Words)


def unsettled(found: Iterable[GateVerdict], judged: Iterable[Gate]) -> dict[int, tuple[Gate, ...]]:
    """The ``judged`` gates that patterns left open or unread, by turn, in the order of ``found``."""
    chosen, asked = set(judged), dict[int, tuple[Gate, ...]]()
    for verdict in found:
        if verdict.gate in chosen and not verdict.closed:
            asked[verdict.turn] = (*asked.get(verdict.turn, ()), verdict.gate)
    return asked


def combined(found: Sequence[GateVerdict], read: Iterable[GateVerdict]) -> list[GateVerdict]:
    """The verdicts of the patterns with those of the models in the place of what the patterns did not close."""
    by_place = {(verdict.turn, verdict.gate): verdict for verdict in read}
    return [verdict if verdict.closed else by_place.get((verdict.turn, verdict.gate), verdict) for verdict in found]


async def read_dialogue(
    trajectory: Trajectory,
    asked: Mapping[int, Sequence[Gate]],
    models: Sequence[ModelClient],
    language: Language,
    rules: ReadingRules,
) -> GateReading:
    """Ask ``models`` about the gates ``asked`` by turn. Raises InputError for no model, or two of one name; a model
    that fails, or answers nothing usable, is data."""
    names = [model.model for model in models]
    check_names(names)
    digest = digest_of(trajectory)
    fence = nonce(rules.seed, digest)
    opinions = await asyncio.gather(
        *(
            _opinion(trajectory.messages[: 2 * turn + 2], turn, tuple(gates), model, language, rules, fence)
            for turn, gates in asked.items()
            for model in models
        )
    )
    return GateReading(
        dialogue_id=trajectory.dialogue_id,
        trajectory=digest,
        language=language,
        prompt_hash=prompt_hash(language),
        rules=rules,
        models=tuple(names),
        opinions=tuple(opinions),
        verdicts=tuple(_verdict(opinions, turn, gate) for turn, gates in asked.items() for gate in gates),
    )


async def replayed(reading: GateReading, trajectory: Trajectory, asked: Mapping[int, Sequence[Gate]]) -> GateReading:
    """The reading made again from its recorded answers, without a model: equal to ``reading``, or it was changed."""
    models = [
        RecordedJudge(model, [call for one in reading.opinions if one.model == model for call in one.calls])
        for model in reading.models
    ]
    return await read_dialogue(trajectory, asked, models, reading.language, reading.rules)


def check_names(names: Sequence[str]) -> None:
    """Raises InputError for no model, or two of one name."""
    if not names:
        raise InputError("gates.models: gates.judged needs a model; name one")
    if len(set(names)) < len(names):
        raise InputError("gates.models: two models bear one name, so their answers can't be told apart; keep one")


def _verdict(opinions: Iterable[GateOpinion], turn: int, gate: Gate) -> GateVerdict:
    """Closed when any model says so; None when none could say anything."""
    answers = [(one.model, one.gates[gate]) for one in opinions if one.turn == turn]
    if closing := [(model, answer) for model, answer in answers if answer.closed]:
        cause = f"read by {', '.join(model for model, _ in closing)}"
        return GateVerdict(gate=gate, turn=turn, closed=True, evidence=closing[0][1].evidence, cause=cause)
    if any(answer.closed is False for _, answer in answers):
        return GateVerdict(gate=gate, turn=turn, closed=False)
    causes = sorted({answer.cause.value for _, answer in answers if answer.cause})
    return GateVerdict(gate=gate, turn=turn, closed=None, cause=f"no model could say ({', '.join(causes)})")


async def _opinion(
    messages: Sequence[Message],
    turn: int,
    gates: tuple[Gate, ...],
    model: ModelClient,
    language: Language,
    rules: ReadingRules,
    fence: str,
) -> GateOpinion:
    """What ``model`` says of the last of ``messages``: of each gate the first usable answer, else the last cause."""
    calls: list[Call] = []
    found: dict[Gate, GateAnswer] = {}
    wrong: dict[str, Cause] = {}
    schema, own = reading_schema(gates, rules.longest_quote), words(language)

    def make_ask(attempt: int, rejected: str | None) -> Ask:
        problems = [f"{gate or own.answer}: {own.causes[cause]}" for gate, cause in wrong.items()]
        return Ask(
            messages=reading_prompt(messages, gates, language, fence, rules.longest_quote, problems),
            answer_schema=schema,
            schema_name="gates",
            seed=derived_seed(rules.seed, "gates", turn),
            attempt=attempt,
            max_tokens=rules.max_tokens,
        )

    def fault(raw: str) -> str | None:
        nonlocal wrong
        whole: Cause | None = None
        read: dict[Gate, GateAnswer] = {}
        try:
            read = read_answer(raw, gates, messages)
        except BadAnswer as error:
            whole = Cause(error.word)
            read = {gate: GateAnswer(closed=None, cause=whole) for gate in gates}
        found.update({gate: new for gate, new in read.items() if gate not in found or found[gate].closed is None})
        left = {str(gate): answer.cause for gate, answer in found.items() if answer.cause}
        wrong = {"": whole} if left and whole else left
        return "; ".join(f"{gate}: {cause.value}" if gate else cause.value for gate, cause in wrong.items()) or None

    try:
        async for call in calls_until_usable(model, rules.attempts, make_ask, fault):
            calls.append(call)
    except ModelError:
        found = found or {gate: GateAnswer(closed=None, cause=Cause.NO_ANSWER) for gate in gates}
    return GateOpinion(model=model.model, turn=turn, calls=tuple(calls), gates=found)


def reading_prompt(
    messages: Sequence[Message],
    gates: Sequence[Gate],
    language: Language,
    fence: str,
    longest_quote: int,
    problems: Sequence[str],
) -> tuple[ChatMessage, ...]:
    """Asks about the last of ``messages``; everything that was said stands between fences."""
    who = words(language).speakers
    said = [fenced(without_thought(message.text), who[message.speaker], fence) for message in messages]
    return two_messages(
        FOLDER,
        "read",
        language,
        gates=gates,
        fence=fence,
        history=said[:-1],
        latest=said[-1],
        longest_quote=longest_quote,
        problems=problems,
    )


def reading_schema(gates: Sequence[Gate], longest_quote: int) -> dict[str, Any]:
    """The JSON schema of an answer; a quote in characters. Evidence comes before the verdict that it leads to."""
    fields = {"evidence": {"type": "string", "maxLength": longest_quote}, "closed": {"type": "boolean"}}
    return _object({gate: _object(fields) for gate in gates})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_answer(raw: str, gates: Sequence[Gate], messages: Sequence[Message]) -> dict[Gate, GateAnswer]:
    """What a raw answer says of each gate on the last of ``messages``, the client's right before it.

    A closed gate needs evidence that stands in the reply, for crisis in the client's message. Raises BadAnswer, whose
    ``word`` is a Cause, for an answer of no use at all; one that stands word for word in a reply was not the model's.
    """
    data = read_object(raw)
    if data.keys() - set(gates):
        raise BadAnswer("the answer had a key that was not asked for", Cause.EXTRA_KEY)
    shown = [as_shown(message) for message in messages]
    replies = [text for message, text in zip(messages, shown, strict=True) if message.speaker == "supporter"]
    if any(_run_together(raw) in _run_together(reply) for reply in replies):
        raise BadAnswer("the answer was taken from the talk, word for word", Cause.READY_MADE)
    found: dict[Gate, GateAnswer] = {}
    for gate in gates:
        try:
            fields = fields_of(data, gate, ("evidence", "closed"))
            found[gate] = _answer(fields, shown[-2] if gate == "crisis" else shown[-1])
        except Unusable as error:
            found[gate] = GateAnswer(closed=None, cause=error.cause)
    return found


def _answer(fields: Mapping[str, Any], said: str) -> GateAnswer:
    if not isinstance(fields["closed"], bool) or not isinstance(fields["evidence"], str):
        raise Unusable(Cause.WRONG_TYPE)
    if not fields["closed"]:
        return GateAnswer(closed=False)
    return GateAnswer(closed=True, evidence=checked_quote(fields["evidence"], [said], earns=True))


def _run_together(text: str) -> str:
    return "".join(plain(text).split())


def reading_line(reading: GateReading) -> str:
    """The JSON line to record."""
    return canonical(reading.model_dump(mode="json"))


def load_readings(path: Path) -> Mapping[str, GateReading]:
    """The readings in a file, by the digest of their trajectory. Raises InputError naming the file and the line."""
    found: dict[str, GateReading] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}); name a run's file of gate readings") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            reading = GateReading.model_validate_json(line)
        except ValidationError as error:
            raise InputError(describe_validation(error, f"{path}:{number}")) from error
        if reading.trajectory in found:
            raise InputError(f"{path}:{number}: reads {reading.dialogue_id} a second time; remove one of the lines")
        found[reading.trajectory] = reading
    return found
