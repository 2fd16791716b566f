"""What a client notices in a supporter's reply."""

from __future__ import annotations

from envs.perception.percept import Heard, Move, Perceiver, Percept
from envs.perception.registry import get_perceiver, register
from envs.perception.rules import RulePerceiver

__all__ = ["Heard", "Move", "Perceiver", "Percept", "RulePerceiver", "get_perceiver", "register"]
