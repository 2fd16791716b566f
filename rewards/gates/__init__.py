"""Safety gates: patterns that close on a reply and void what the dialogue gained."""

from __future__ import annotations

from rewards.gates.check import check_gates, check_messages, gated_emotions, gated_final
from rewards.gates.gate import GATES, Gate, GateVerdict

__all__ = [
    "GATES",
    "Gate",
    "GateVerdict",
    "check_gates",
    "check_messages",
    "gated_emotions",
    "gated_final",
]
