"""Credit: from the scores of a batch to what each turn is credited with, and from there to every sampled token.

The only place where GRPO and PPO differ, beside the value head. The first half follows from the record alone, so that
it can be computed again; the second needs the model's likelihoods and, for PPO, its values.

What a turn is credited with (``CreditKind``):

- terminal: the dialogue's total, as RLVER (arXiv 2507.03112) rewards its end.
- turn: what the turn added to the total. Of the emotion that is its change, so that the turns add up to the final
  emotion less the first, exactly.
- utterance: a share of the total, after Sotopia-RL (arXiv 2508.03905): (a / 3) * total with a in 0..3. Unlike there,
  the shares may be the client's own changes (ten points or more count 3), and no reward model is trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from envs.trajectory import Score
from rewards.combine import (
    decoupled_advantages,
    decoupled_turn_advantages,
    flat_groups,
    group_relative,
    in_groups,
    is_flat,
    relative_returns,
    relative_to_turn,
)

if TYPE_CHECKING:
    from torch import Tensor

CreditKind = Literal["terminal", "turn", "utterance"]
CHANGE = "change"  # the attribution by the client's own changes
EMOTION = "emotion"
FULL_CHANGE = 0.1  # a change of ten points or more has the full share
LEVELS = 3  # shares are 0, 1, 2 or 3 thirds


@dataclass(frozen=True)
class Credit:
    """What each row's turns are credited with, ``turns`` (B, turns): advantages, or with PPO rewards. A row that failed
    or could not be scored has advantage 0 on each, and no reward at all. With credit for whole dialogues a row holds
    one number.

    ``groups_without_variance``: groups without a signal, of ``groups``.
    """

    turns: tuple[tuple[float, ...], ...]
    groups: int
    groups_without_variance: int

    @property
    def advantages(self) -> tuple[float, ...]:
        """The number of each row (B,), with credit for whole dialogues."""
        return tuple(row[0] for row in self.turns)


@dataclass(frozen=True)
class ValueLoss:
    """How a value head is trained: the weight of its loss beside the policy's, how far a value may move before the loss
    is clipped, and AdamW's learning rate for the head's own weights."""

    coef: float = 0.5
    clip: float = 0.2
    learning_rate: float = 0.02


@dataclass(frozen=True)
class TokenBatch:
    """What a rank's rows are when credit reaches the tokens; (B, T) over the completion part.

    ``turns_BT``: the turn of each sampled token that is trained on, -1 elsewhere. ``ref_logps_BT`` is there where the
    assigner has a ``reference_kl``, ``values_BT`` where there is a value head. ``gathered`` sums over ranks.
    """

    turns_BT: Tensor
    logps_BT: Tensor
    ref_logps_BT: Tensor | None
    values_BT: Tensor | None
    gathered: Callable[[Tensor], Tensor]


class CreditAssigner(Protocol):
    """Turns the scores of a batch (B,) into credit."""

    @property
    def value(self) -> ValueLoss | None:
        """How a value head is trained; None: there is none."""
        ...

    @property
    def reference_kl(self) -> float:
        """Weight of the divergence from the reference within the rewards; 0: it stands in the loss or nowhere."""
        ...

    def line(self, credit: Sequence[float]) -> dict[str, Any]:
        """What the record holds of one row of ``Credit.turns``."""
        ...

    def of(self, scores: Sequence[Score], turns: Sequence[int]) -> Credit:
        """Credit for totals, with their parts, that stand group by group, of rows with so many ``turns`` (B,)."""
        ...

    def spread(self, credit: Sequence[Sequence[float]], batch: TokenBatch) -> dict[str, Tensor]:
        """What the loss needs, {"advantages": (B,) or (B, T), ...}, from a rank's rows of ``Credit.turns``."""
        ...


@dataclass(frozen=True)
class _Groups:
    """What the assigners of GRPO share: advantages within groups, spread over the tokens of each turn."""

    group_size: int
    kind: CreditKind = "terminal"

    @property
    def value(self) -> None:
        """There is no value head."""
        return None

    @property
    def reference_kl(self) -> float:
        """The divergence stands in the loss."""
        return 0.0

    def line(self, credit: Sequence[float]) -> dict[str, Any]:
        """{"advantage"} of the dialogue, or {"advantages"} of its turns."""
        return {"advantage": credit[0]} if self.kind == "terminal" else {"advantages": list(credit)}

    def spread(self, credit: Sequence[Sequence[float]], batch: TokenBatch) -> dict[str, Tensor]:
        """{"advantages": (B,)} where every turn of a row has the same, else (B, T)."""
        logps_BT = batch.logps_BT
        if self.kind == "terminal":
            return {"advantages": logps_BT.new_tensor([row[0] for row in credit])}
        width = max([1, *map(len, credit)])
        table = logps_BT.new_tensor([[*row, *[0.0] * (width - len(row))] for row in credit])
        ours = batch.turns_BT >= 0
        return {"advantages": table.gather(1, batch.turns_BT.clamp(min=0)) * ours}


@dataclass(frozen=True)
class GroupRelative(_Groups):
    """Advantages within a group of dialogues with the same client (GRPO, arXiv 2402.03300).

    terminal: the total less the mean of its group, over the group's standard deviation. turn: what was earned from each
    turn on, against what the group's others earned from the same turn on. utterance: the turn's share, against the
    group's at the same turn. Deviations are over dialogues, each counting once.

    ``discount``: with credit turn, what a reward counts one turn earlier; below 1 the turns don't add up to what the
    dialogue gained, and a reply answers less for what others made of it later.

    ``scale`` "none" leaves the division out (arXiv 2503.20783). The deviation is the sample's (n - 1). Unlike the
    paper, totals that could not be measured are left out of mean and deviation, and their rows get advantage 0.
    """

    scale: Literal["group", "none"] = "group"
    attribution: str = CHANGE
    discount: float = 1.0

    def of(self, scores: Sequence[Score], turns: Sequence[int]) -> Credit:
        """Advantages of ``scores`` (B,). Raises ValueError when B is no multiple of the group size."""
        if self.kind == "terminal":
            return self.assign([score.value for score in scores])
        groups = in_groups(list(zip(scores, turns, strict=True)), self.group_size)
        found = [self._turns([score for score, _ in group], [count for _, count in group]) for group in groups]
        flat = sum(not any(any(row) for row in group) for group in found)
        return Credit(tuple(tuple(row) for group in found for row in group), len(groups), flat)

    def assign(self, totals: Sequence[float | None]) -> Credit:
        """Advantages of totals (B,). Raises ValueError when B is no multiple of the group size."""
        groups = in_groups(totals, self.group_size)
        rows = [(a,) for group in groups for a in group_relative(group, scaled=self.scale == "group")]
        return Credit(tuple(rows), groups=len(groups), groups_without_variance=sum(map(is_flat, groups)))

    def _turns(self, scores: Sequence[Score], turns: Sequence[int]) -> list[list[float]]:
        paths = turn_rewards(scores, turns, self.kind, self.attribution)
        scaled = self.scale == "group"
        if self.kind == "turn":
            return relative_returns(paths, turns, scaled=scaled, discount=self.discount)
        means = [None if not path else sum(path) / len(path) for path in paths]
        return relative_to_turn(paths, means, turns, scaled=scaled)


@dataclass(frozen=True)
class GroupDecoupled(_Groups):
    """Each reward measured against its group before they are added by weight (GDPO: see ``rewards.combine``).

    ``weights`` (rewards,), in the order of each row's scores; further parts of a total have none.
    """

    weights: tuple[float, ...] = ()

    def of(self, scores: Sequence[Score], turns: Sequence[int]) -> Credit:
        """Advantages of the parts of ``scores`` (B,); a row whose total could not be measured gets 0.

        Raises ValueError when rows, groups and weights don't fit.
        """
        parts = [_measured(row, score) for row, score in zip(row_parts(scores), scores, strict=True)]
        rows = [row[: len(self.weights)] for row in parts]
        groups, flat = len(rows) // self.group_size, flat_groups(rows, self.weights, self.group_size)
        if self.kind == "terminal":
            return Credit(tuple((a,) for a in decoupled_advantages(rows, self.weights, self.group_size)), groups, flat)
        found = decoupled_turn_advantages(rows, self.weights, self.group_size, turns)
        return Credit(tuple(map(tuple, found)), groups, flat)


@dataclass(frozen=True)
class ValueBased:
    """Advantages from a value head (PPO, arXiv 1707.06347, with GAE, arXiv 1506.02438).

    The turns' rewards stand on their last sampled tokens; an utterance's share is divided by the number of turns, or
    talking longer would pay. ``reference_kl`` times the divergence from the reference is taken off at every token.
    """

    kind: CreditKind = "terminal"
    attribution: str = CHANGE
    discount: float = 1.0
    lam: float = 1.0
    reference_kl: float = 0.0
    value: ValueLoss = ValueLoss()

    def line(self, credit: Sequence[float]) -> dict[str, Any]:
        """{"rewards"} of the turns, as they are before the divergence; advantages hang on the model's values."""
        return {"rewards": list(credit)}

    def of(self, scores: Sequence[Score], turns: Sequence[int]) -> Credit:
        """The rewards of each turn; none for a row without a total. There are no groups."""
        paths = turn_rewards(scores, turns, self.kind, self.attribution)
        if self.kind == "utterance":
            paths = [path and [reward / len(path) for reward in path] for path in paths]
        return Credit(tuple(tuple(path or ()) for path in paths), 0, 0)

    def spread(self, credit: Sequence[Sequence[float]], batch: TokenBatch) -> dict[str, Tensor]:
        """{"advantages", "returns", "old_values", "value_mask"}, (B, T) each; advantages are whitened over all ranks.

        Of a row without rewards nothing is learnt, by the value head neither.
        """
        from trainers.gae import gae, token_rewards, whiten

        assert batch.values_BT is not None
        sampled = (batch.turns_BT >= 0).any(1).tolist()
        paths = [row if there else () for row, there in zip(credit, sampled, strict=True)]
        mask_BT = (batch.turns_BT >= 0) & batch.turns_BT.new_tensor([[bool(row)] for row in paths]).bool()
        rewards_BT = token_rewards(paths, batch.turns_BT, self.reference_kl, batch.logps_BT, batch.ref_logps_BT)
        values_BT = batch.values_BT * mask_BT
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, self.discount, self.lam)
        advantages_BT = whiten(advantages_BT, mask_BT, batch.gathered)
        return {"advantages": advantages_BT, "returns": returns_BT, "old_values": values_BT, "value_mask": mask_BT}


def turn_rewards(
    scores: Sequence[Score], turns: Sequence[int], kind: CreditKind, attribution: str = CHANGE
) -> list[list[float] | None]:
    """What each turn of each row is rewarded with, (B, turns); None for a row without a total.

    A row that could not be attributed is one without a total here: its shares are unknown, and not 0.
    """
    found: list[list[float] | None] = []
    for score, count in zip(scores, turns, strict=True):
        if score.value is None or not count:
            found.append(None)
        elif kind == "terminal":
            found.append([0.0] * (count - 1) + [score.value])
        elif kind == "turn":
            found.append(_shares(score, count))
        else:
            parts = _attributed(score, count, attribution)
            found.append(parts and [part * score.value for part in parts])
    return found


def _shares(score: Score, turns: int) -> list[float] | None:
    """The score's share of each turn; None where one is missing."""
    shares = [share for share in score.per_turn or () if share is not None]
    return shares if len(shares) == turns else None


def _attributed(score: Score, turns: int, attribution: str) -> list[float] | None:
    """How much of the total each turn carries, in thirds, 0 to 1; None where that could not be measured."""
    name = EMOTION if attribution == CHANGE else attribution
    source = next((part for part in score.parts if part.name == name), None if score.parts else score)
    shares = _shares(source, turns) if source else None
    if shares is None:
        return None
    if attribution == CHANGE:
        return [round(LEVELS * min(1.0, max(0.0, share / FULL_CHANGE))) / LEVELS for share in shares]
    return [share * turns for share in shares]  # a judge's shares are its marks over the number of turns


def _measured(row: Sequence[Score], total: Score) -> Sequence[Score]:
    """A row's parts; without values when its total has none, such as where a gate could not be judged."""
    return row if total.value is not None else [part.model_copy(update={"value": None}) for part in row]


def row_parts(scores: Sequence[Score]) -> list[tuple[Score, ...]]:
    """Each row's parts (B,), the same in every row: a row that was not scored has them without a value. A total without
    parts is its own."""
    names = next(([part.name for part in score.parts] for score in scores if score.parts), None)
    if names is None:
        return [(score.model_copy(update={"name": "total"}),) for score in scores]
    return [score.parts or tuple(Score(name=name, value=None) for name in names) for score in scores]
