"""The emotion reward: how the client felt when the talk ended (SAGE, arXiv 2505.02847; RLVER, arXiv 2507.03112)."""

from __future__ import annotations

from envs.trajectory import Score, Trajectory


class EmotionReward:
    """Final emotion / 100. ``per_turn`` holds each turn's change / 100, which telescopes to (e_T - e_0) / 100."""

    name = "emotion"

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None when it failed."""
        final = trajectory.final_emotion
        if final is None:
            return Score(name=self.name, value=None, evidence=f"the dialogue failed: {trajectory.error}")
        changes = tuple(turn.client.change / 100 for turn in trajectory.turns)
        path = " ".join(f"{emotion:g}" for emotion in trajectory.emotions)
        return Score(name=self.name, value=final / 100, evidence=f"emotion after each turn: {path}", per_turn=changes)
