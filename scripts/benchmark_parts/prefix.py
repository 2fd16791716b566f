"""What a prefix cache could have held at best, worked out from the prompts that were really sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class IdealPrefixes:
    """Counts, prompt by prompt, the tokens in full blocks that had been seen before under the same name.

    vLLM keys its cache on the adapter's name and keeps whole blocks only; of a prompt it always computes the last token
    itself, so a prompt of exactly n blocks can find n - 1. A prompt counts as seen from when it was asked: whoever
    asks at the same moment could share its blocks.
    """

    def __init__(self, block: int = 16) -> None:
        self.block = block
        self.tokens = 0  # that could have been found
        self.asked = 0  # that were in prompts
        self._next: dict[tuple[str, int, tuple[int, ...]], int] = {}

    def ask(self, name: str, prompt_ids: Sequence[int]) -> int:
        """Count a prompt, remember it, and return how many of its tokens could have been found."""
        at, found = 0, 0
        usable = (len(prompt_ids) - 1) // self.block
        for place, piece in enumerate(self._blocks(prompt_ids)):
            at = self._next.get((name, at, piece), -1)
            if at < 0 or place >= usable:
                break
            found += self.block
        self.tokens, self.asked = self.tokens + found, self.asked + len(prompt_ids)
        self.learn(name, prompt_ids)
        return found

    def learn(self, name: str, ids: Sequence[int]) -> None:
        """Remember ids whose keys and values have been computed: prompts, and replies but for their last token."""
        at = 0
        for piece in self._blocks(ids):
            at = self._next.setdefault((name, at, piece), len(self._next) + 1)

    def _blocks(self, ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        for start in range(0, len(ids) - self.block + 1, self.block):
            yield tuple(ids[start : start + self.block])
