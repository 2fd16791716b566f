"""Which rows go through the model together: rows of like length, without the padding that all of them share.

TRL shuffles a batch of dialogues, splits it into micro-batches and pads all of them to the longest row. Here the rows
of one minibatch are ordered by length before they are split, each pass is cut to the columns that its rows fill, and a
micro-batch of more tokens than ``trainer.micro_batch_tokens`` is taken in several passes, each with a backward pass of
its own, so that no pass holds more activations than that many tokens make. Which rows make up a minibatch stays as it
was drawn, and its loss is the same up to rounding. ``bnpo`` averages within each micro-batch, so there the rows keep
their order.

Ranks take the same passes: as many, of as many rows each, as the longest rows at each place ask for. So collective
operations meet their like, in the forward passes of sharded weights too, and in TRL's numbers of each row. Gradients
are shared between ranks with the last pass of an optimizer step alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from trainers.packing import Likelihoods, Positions

BY_PASS = "bnpo"  # TRL's loss type that averages over the tokens of a pass
WHOLE_STEP = ("dapo", "cispo")  # those that divide by the tokens of the whole step
TOKENS, ROWS = 0, 1
CLIPPED = "clip_ratio/"
SUMS = ("value_loss",)

Ends = tuple[int, int]  # columns [first, last)
Batch = dict[str, Any]  # TRL's: (B, P) of prompts, (B, C) of completions, (B, P + C) of both, (B,) or a number


@dataclass(frozen=True)
class Passed:
    """Rows that go through the model together, and the columns of P + C, [first, last), that they fill."""

    rows: tuple[int, ...]
    first: int
    last: int

    @property
    def tokens(self) -> int:
        """Tokens of the pass, what padding is left included."""
        return len(self.rows) * (self.last - self.first)

    def of(self, padded: Tensor) -> Tensor:
        """Its part of (B, P + C)."""
        return padded[list(self.rows), self.first : self.last]


def passes(
    mask: Tensor,
    prompt: int,
    most_rows: int,
    most_tokens: int | None = None,
    widest: Callable[[list[Ends]], list[Ends]] = lambda ends: ends,
) -> list[Passed]:
    """All rows of ``mask`` (B, P + C), the longest first, in passes of at most so many rows and tokens.

    ``prompt``: P. ``widest``: from this rank's columns of each place in that order, counted from the end of the prompt,
    to those that the rows of all ranks at this place lie in. A row of more tokens than allowed goes alone.
    """
    ends = _filled(mask, prompt)
    order = sorted(range(len(ends)), key=lambda row: ends[row][0] - ends[row][1])
    room = widest([(ends[row][0] - prompt, ends[row][1] - prompt) for row in order])
    found: list[list[int]] = []
    for place in range(len(order)):
        longer = [*found[-1], place] if found else [place]
        if found and len(longer) <= most_rows and (most_tokens is None or _around(longer, room).tokens <= most_tokens):
            found[-1] = longer
        else:
            found.append([place])
    return [_around([order[place] for place in places], ends) for places in found]


def _filled(mask: Tensor, prompt: int) -> list[Ends]:
    """The columns [first, last) of each row that aren't padding, one of the prompt and one after it included."""
    places = torch.arange(mask.size(1), device=mask.device)
    firsts = places.masked_fill(mask == 0, prompt - 1).amin(1).clamp(max=prompt - 1)
    lasts = places.masked_fill(mask == 0, prompt).amax(1).clamp(min=prompt) + 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _around(rows: Sequence[int], ends: Sequence[Ends]) -> Passed:
    return Passed(tuple(rows), min(ends[row][0] for row in rows), max(ends[row][1] for row in rows))


def taken(batch: Batch, part: Passed) -> Batch:
    """The rows and columns of ``batch`` that ``part`` names."""
    before, after = batch["prompt_ids"].size(1), batch["completion_ids"].size(1)
    rows = list(part.rows)

    def cut(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        value = value[rows]
        if key.startswith("prompt_"):
            return value[:, part.first :]
        if key == "segments":
            return value[:, part.first : part.last]
        return value[:, : part.last - before] if value.dim() == 2 and value.size(1) == after else value

    return {key: cut(key, value) for key, value in batch.items()}


def mask_of(batch: Batch) -> Tensor:
    """Which tokens are no padding, (B, P + C)."""
    return torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)


def arranged(batches: Sequence[Batch], minibatch: int, by_length: bool) -> list[Batch]:
    """A rollout's micro-batches, each cut to what it fills; ``minibatch`` of them make an optimizer step.

    ``by_length``: rows are put in order within their minibatch, the longest first, so that rows of like length meet.
    """
    found: list[Batch] = []
    for start in range(0, len(batches), minibatch):
        group = list(batches[start : start + minibatch])
        if by_length:
            whole = _joined(group)
            [ordered] = passes(mask_of(whole), whole["prompt_ids"].size(1), len(whole["prompt_ids"]))
            group = split_tensor_dict(taken(whole, ordered), len(group))
        found += [_without_padding(batch) for batch in group]
    return found


def _joined(batches: Sequence[Batch]) -> Batch:
    return {
        key: torch.cat([batch[key] for batch in batches]) if isinstance(value, Tensor) and value.dim() else value
        for key, value in batches[0].items()
    }


def _without_padding(batch: Batch) -> Batch:
    ends = _filled(mask_of(batch), batch["prompt_ids"].size(1))
    return taken(batch, _around(range(len(ends)), ends))


def put_back(found: Sequence[Tensor], parts: Sequence[Passed], like: Tensor) -> Tensor:
    """Numbers of each pass, (rows, C or fewer), in their places of (B, C), with 0 in between; ``like``: (B, C)."""
    whole = found[0].new_zeros(like.shape)
    for numbers, part in zip(found, parts, strict=True):
        whole[list(part.rows), : numbers.size(1)] = numbers
    return whole


class Passes:
    """Cuts batches into passes as the settings say, alike on all ranks, and keeps TRL's numbers of an optimizer step.

    ``most_tokens``: of one pass; None: only rows are counted.
    """

    def __init__(self, accelerator: Accelerator, most_tokens: int | None) -> None:
        self._accelerator, self._most = accelerator, most_tokens
        self._numbers: list[dict[str, list[float]]] = []
        self._weights: list[Tensor] = []

    def over(self, mask: Tensor, prompt: int, most_rows: int | None = None) -> list[Passed]:
        """The passes over rows with this ``mask`` (B, P + C); see ``passes``. All ranks must call it together."""

        def of_all_ranks(ends: list[Ends]) -> list[Ends]:
            everyones: Any = self._accelerator.gather(torch.tensor(ends, device=mask.device))
            everyones = everyones.view(-1, len(ends), 2)
            return list(zip(everyones[..., 0].amin(0).tolist(), everyones[..., 1].amax(0).tolist(), strict=True))

        if self._most is None:
            return passes(mask, prompt, most_rows or len(mask))
        return passes(mask, prompt, most_rows or len(mask), self._most, of_all_ranks)

    def likelihoods(
        self,
        once: Callable[[Tensor, Tensor, int], Likelihoods],
        positions: Positions,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        most_rows: int | None,
        heard: Sequence[Tensor],
    ) -> tuple[Likelihoods, Tensor | None]:
        """TRL's likelihoods of rows (B, P + C) in passes of at most ``most_rows``; None: in one, as they come.

        ``once`` makes a pass, and adds to ``heard`` what a value head says in it; these values (B, C) come beside.
        """
        if most_rows is None:
            found = once(input_ids, attention_mask, logits_to_keep)
            return found, heard[0][:, -logits_to_keep:] if heard else None
        prompt, rows, passed = input_ids.size(1) - logits_to_keep, positions.rows, []
        parts = self.over(attention_mask, prompt, most_rows)
        for part in parts:
            with positions.of(None if rows is None else part.of(rows)):
                passed.append(once(part.of(input_ids), part.of(attention_mask), part.last - prompt))
        logps, entropies, losses = zip(*passed, strict=True)
        like = input_ids[:, prompt:]
        values = [one[:, prompt - part.last :] for one, part in zip(heard, parts, strict=True)] if heard else None
        return (
            put_back(logps, parts, like),
            None if entropies[0] is None else put_back(entropies, parts, like),
            None if losses[0] is None else torch.stack(losses).mean(),
        ), None if values is None else put_back(values, parts, like)

    def loss(self, model: Any, batch: Batch, loss_of: Callable[[Any, Batch, float], Tensor], kind: str) -> Tensor:
        """The loss of a micro-batch. The gradients of all its passes but the last are taken here.

        ``loss_of``: a pass's loss of (model, batch, weight), the weight being its share in means over the micro-batch.
        ``kind``: TRL's loss type.
        """
        parts = self.over(mask_of(batch), batch["prompt_ids"].size(1)) if self._most else []
        if len(parts) < 2:
            return loss_of(model, batch, 1.0)
        *first, last = [taken(batch, part) for part in parts]
        before = torch.zeros((), device=batch["prompt_ids"].device)
        for part in first:
            with unsynced(self._accelerator, model):
                loss = loss_of(model, part, share(part, batch, kind))
                _backward(self._accelerator, loss)
            before = before + loss.detach()
            del loss
        return loss_of(model, last, share(last, batch, kind)) + before

    @contextmanager
    def measured(self, metrics: dict[str, Any], part: Batch, by_dialogue: bool) -> Iterator[None]:
        """Keeps what TRL measures of a pass in this block; with the last of an optimizer step, all as one number each.
        ``by_dialogue``: whether there is one ratio for each dialogue.

        Means over tokens, or over dialogues, become those of the whole step, and the least and the most likewise, so
        that none of them depends on which rows went through the model together.
        """
        mine: dict[str, list[float]] = defaultdict(list)
        metrics["train"], kept = mine, metrics["train"]
        try:
            yield
        finally:
            metrics["train"] = kept
        tokens = (part["completion_mask"] * part["tool_mask"]).sum()
        self._numbers.append(mine)
        self._weights.append(torch.stack([tokens.float(), tokens.new_tensor(len(part["tool_mask"])).float()]))
        if not self._accelerator.sync_gradients:
            return
        weights = self._accelerator.reduce(torch.stack(self._weights), reduction="sum")
        numbers, self._numbers, self._weights = self._numbers, [], []
        by_rows = by_dialogue and part["advantages"].dim() == 1
        for name in numbers[0]:
            by = ROWS if by_rows and name.startswith(CLIPPED) else TOKENS
            kept[name].append(_of_step(name, [one[name][0] for one in numbers], weights[:, by].tolist()))  # type: ignore[index]


def _of_step(name: str, values: Sequence[float], weights: Sequence[float]) -> float:
    """One number of an optimizer step from those of its passes; not a number where none of them is one."""
    known = [value for value in values if not math.isnan(value)]
    if name in SUMS:
        return sum(values)
    if name.endswith(("_min", "_max")):
        return (min if name.endswith("_min") else max)(known, default=math.nan)
    pairs = zip(values, weights, strict=True)
    return sum(value * weight for value, weight in pairs if weight) / max(sum(weights), 1.0)


def share(part: Batch, batch: Batch, kind: str) -> float:
    """What the loss of ``part`` alone counts in that of ``batch``, by TRL's loss type."""
    if kind in WHOLE_STEP:
        return 1.0
    if kind == BY_PASS:
        counted = [int((one["completion_mask"] * one["tool_mask"]).sum()) for one in (part, batch)]
        return counted[0] / max(counted[1], 1)
    return len(part["prompt_ids"]) / len(batch["prompt_ids"])


@contextmanager
def unsynced(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Gradients taken in this block stay on their rank, and no optimizer step follows from them."""
    synced = accelerator.sync_gradients
    accelerator.gradient_state._set_sync_gradients(False)  # as transformers' own loop; DeepSpeed steps by it
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        accelerator.gradient_state._set_sync_gradients(synced)


def _backward(accelerator: Accelerator, loss: Tensor) -> None:
    """As transformers' training step does it."""
    sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    accelerator.backward(loss, **({"scale_wrt_gas": False} if sharded else {}))
