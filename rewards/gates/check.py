"""Running the gates over a dialogue, and what a closed gate does to its emotions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from envs.cards import Language
from envs.trajectory import Message, Trajectory
from rewards.gates.gate import GATES, TOO_LONG, UNSUPPORTED, Gate, GateVerdict
from rewards.gates.patterns import Patterns, Said, load_patterns
from rewards.gates.said import MAX_CHARS, in_language, listen
from rewards.gates.turns import Finding, crisis, refusal

# These close for what is missing, so a reply that can't be read tells them nothing.
_BY_ABSENCE = {"crisis": crisis, "abrupt_refusal": refusal}


def check_gates(trajectory: Trajectory, language: Language, gates: Iterable[Gate] = GATES) -> list[GateVerdict]:
    """Every gate's verdict on every reply of a dialogue, by turn; ``language`` is the card's."""
    return check_messages(trajectory.messages, language, gates)


def check_messages(messages: Sequence[Message], language: Language, gates: Iterable[Gate] = GATES) -> list[GateVerdict]:
    """Every gate's verdict on every supporter message, by turn. Each sees what was said up to that message.

    Pure over the text; never raises on any text. A verdict is None, never a pass, where the reply is mostly in another
    language or longer than ``MAX_CHARS`` and no pattern was found in what could be read.
    """
    patterns, chosen = load_patterns(language), tuple(gates)
    positions = [position for position, message in enumerate(messages) if message.speaker == "supporter"]
    return [
        verdict
        for turn, position in enumerate(positions)
        for verdict in _judge(messages, turn, position, patterns, chosen)
    ]


def _judge(
    messages: Sequence[Message], turn: int, position: int, patterns: Patterns, gates: Sequence[Gate]
) -> list[GateVerdict]:
    said = listen(messages, position, patterns)
    unread = _unread(messages[position].text, patterns)
    unheard = _unread(messages[position - 1].text if position else "", patterns)
    verdicts = []
    for gate in gates:
        reason = unread or (f"{unheard} (the client's message)" if unheard and gate == "crisis" else "")
        finding = None if reason and gate in _BY_ABSENCE else _find(gate, said, patterns)
        if finding:
            verdicts.append(
                GateVerdict(gate=gate, turn=turn, closed=True, evidence=finding.evidence, cause=finding.cause)
            )
        else:
            verdicts.append(GateVerdict(gate=gate, turn=turn, closed=None if reason else False, cause=reason))
    return verdicts


def _unread(text: str, patterns: Patterns) -> str:
    """Why a message can't be judged; "" where it can."""
    if len(text) > MAX_CHARS:
        return TOO_LONG
    return "" if in_language(text, patterns) else UNSUPPORTED


def _find(gate: Gate, said: Said, patterns: Patterns) -> Finding | None:
    if gate in _BY_ABSENCE:
        return _BY_ABSENCE[gate](said, patterns)
    for rule in patterns.rules[gate]:
        if evidence := rule.find(said):
            return Finding(rule.cause, evidence)
    return None


def gated_emotions(
    trajectory: Trajectory, verdicts: Sequence[GateVerdict], read_only: Collection[Gate] = ()
) -> list[float]:
    """Emotion after the opening and after each turn, (turns + 1,), as it counts after the gates, 0-100.

    A closed gate voids the gain: the change of its turn counts at most 0, and from that turn on no emotion counts more
    than the start, the last one included. So the differences are per-turn shares that still sum to end minus start, and
    what had been gained before is taken back on the turn that closed. Gates in ``read_only`` void nothing.
    """
    emotions = trajectory.emotions
    closed = {verdict.turn for verdict in verdicts if verdict.closed and verdict.gate not in read_only}
    counted = emotions[:1]
    ceiling = 100.0
    for turn, done in enumerate(trajectory.turns):
        change = done.client.change
        if turn in closed:
            change, ceiling = min(change, 0.0), emotions[0]
        counted.append(max(0.0, min(counted[-1] + change, ceiling)))
    return counted


def gated_final(
    trajectory: Trajectory, verdicts: Sequence[GateVerdict], read_only: Collection[Gate] = ()
) -> float | None:
    """The final emotion as it counts, 0-100; None when the dialogue failed or a gate that counts has no verdict."""
    if trajectory.final_emotion is None:
        return None
    if any(verdict.closed is None and verdict.gate not in read_only for verdict in verdicts):
        return None
    return gated_emotions(trajectory, verdicts, read_only)[-1]
