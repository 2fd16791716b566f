"""From the generations of a dialogue to one training sample: ids, which of them were sampled, at what likelihood.

Where thoughts are taken out of the history, a later prompt doesn't continue the ids before it. The dialogue stays one
row all the same, as a row of segments, each a prompt and what was sampled after it: the number of rows, the statistics
of a group and the actions of a dialogue don't depend on the form of its replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.trajectory import Generation


@dataclass(frozen=True)
class Sample:
    """A dialogue as one token sequence: ``ids``, ``turns`` and ``logprobs`` are all (T,).

    ``turns`` is the turn of each token that the policy sampled, from 0, and -1 elsewhere; ``logprobs`` (nats) are 0
    there. The first ``prompt_length`` ids are the prompt part. The last id is an end-of-turn. ``starts``: where each
    segment begins; tokens see those of their own segment only.
    """

    ids: tuple[int, ...]
    turns: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_length: int
    starts: tuple[int, ...] = (0,)

    @property
    def segments(self) -> list[slice]:
        """The places of each segment."""
        return [slice(*ends) for ends in zip(self.starts, [*self.starts[1:], len(self.ids)], strict=True)]

    @property
    def policy_mask(self) -> tuple[int, ...]:
        """1 exactly on the tokens that the policy sampled, (T,)."""
        return tuple(int(turn >= 0) for turn in self.turns)

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The ids that are trained on, in order."""
        return tuple(token for token, ours in zip(self.ids, self.policy_mask, strict=True) if ours)


def build_sample(generations: Sequence[Generation], end_of_turn: int, *, retold: bool = False) -> Sample:
    """Concatenate a dialogue's generations into one sample.

    Every generation's ``prompt_ids`` must continue the sequence of the one before; what lies between (a forced
    end-of-turn, the client's words) is context. ``retold``: the history stands in later prompts without its thoughts,
    so one that doesn't continue begins a new segment, and every sampled token still stands in the sample once. A last
    reply without end-of-turn gets one outside the mask. Raises ValueError when there is no generation or a history was
    re-made that isn't retold.
    """
    if not generations:
        raise ValueError("a dialogue without a reply has nothing to train on")
    ids: list[int] = []
    turns: list[int] = []
    logprobs: list[float] = []
    starts = [0]
    for turn, generation in enumerate(generations):
        before = ids[starts[-1] :]
        if retold and list(generation.prompt_ids[: len(before)]) != before:
            starts.append(len(ids))
            before = []
        if list(generation.prompt_ids[: len(before)]) != before:
            raise ValueError(f"turn {turn}: the prompt does not continue the ids of the turns before")
        if len(generation.ids) != len(generation.logprobs) or not generation.ids:
            raise ValueError(
                f"turn {turn}: {len(generation.ids)} ids with {len(generation.logprobs)} log-probabilities"
            )
        context = generation.prompt_ids[len(before) :]
        ids += [*context, *generation.ids]
        turns += [-1] * len(context) + [turn] * len(generation.ids)
        logprobs += [0.0] * len(context) + list(generation.logprobs)
    if ids[-1] != end_of_turn:
        ids, turns, logprobs = [*ids, end_of_turn], [*turns, -1], [*logprobs, 0.0]
    return Sample(tuple(ids), tuple(turns), tuple(logprobs), len(generations[0].prompt_ids), tuple(starts))


def blank_sample(end_of_turn: int) -> Sample:
    """The row of a dialogue that can't be trained on: the row count stays fixed, and its mask is 0 everywhere."""
    return Sample((end_of_turn, end_of_turn), (-1, -1), (0.0, 0.0), prompt_length=1)
