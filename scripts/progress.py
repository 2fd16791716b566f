"""What a person sees while a run goes on: a line for each phase, and one for each training step."""

from __future__ import annotations

import time
from typing import Any

from rich.text import Text

from scripts.console import stderr
from trainers.run import Progress

BAR = 20  # characters for an emotion of 100


class Told:
    """Tells a run's progress on stderr, with minutes and seconds since it began."""

    def __init__(self, steps: int) -> None:
        self._steps, self._started = steps, time.monotonic()

    @property
    def progress(self) -> Progress:
        """The callbacks that a run wants."""
        return Progress(phase=self.phase, step=self.step)

    def phase(self, text: str) -> None:
        """What begins now."""
        stderr.print(Text.assemble((self._clock(), "dim"), text), soft_wrap=True)

    def step(self, line: dict[str, Any]) -> None:
        """One training step: how the clients felt at the end, and how far the policy has moved."""
        emotion = line["mean_final_emotion"]
        shown = "   -" if emotion is None else f"{emotion:4.1f}"
        bar = "█" * round((emotion or 0) / 100 * BAR)
        told = (
            f"step {line['step'] + 1:>3}/{self._steps}  emotion {shown} {bar:<{BAR}}  turns {line['turns'] or 0:3.1f}"
            f"  KL {line['kl'] or 0:.3f}  sampler-trainer {line['max_logprob_difference']:.0e}"
            f"  {sum(line['seconds'].values()):4.1f} s"
        )
        stderr.print(Text.assemble((self._clock(), "dim"), told), soft_wrap=True)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes:>2}:{seconds:02}  "
