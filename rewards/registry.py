"""Rewards by name: those that need nothing but the record."""

from __future__ import annotations

from collections.abc import Callable

from rewards.emotion import EmotionReward
from rewards.emotion_label import EmotionLabelReward
from rewards.format import FormatReward
from rewards.reward import Reward
from rewards.shaping import LengthReward, RepetitionReward

REWARDS: dict[str, Callable[[], Reward]] = {
    "emotion": EmotionReward,
    "format-think": lambda: FormatReward("think"),
    "format-kardia": lambda: FormatReward("kardia"),
    "emotion-label": EmotionLabelReward,
    "length": LengthReward,
    "repetition": RepetitionReward,
}
