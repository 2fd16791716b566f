"""Rows that hold several sequences: which tokens see which, and where each one's positions begin.

A dialogue whose thoughts are taken out of its history is trained as one row of segments (``trainers.samples``). Each
segment has to be read as it was sampled: from position 0, and seeing nothing of the others. TRL names neither, so a
hook before the model's forward pass does: it gives position ids that restart in every segment, and no attention mask.
From these transformers makes the block-diagonal causal mask itself (``find_packed_sequence_indices`` in its
``masking_utils``), for eager attention and sdpa alike, with a model's sliding windows. A 4D mask of our own would need
a type for each kind of attention, and would switch the windows off. Padding is a segment too, on either side, and since
nobody sees it, it needs no mask. Layers that keep a state instead of attending would see across segments; the check of
sampler against trainer ends such a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trainers.samples import Sample

LEFT, RIGHT = 0, -1  # padding; a row's own segments count from 1
Likelihoods = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]  # log-probabilities, entropies (B, C); loss


class Positions:
    """The hook before the model's forward pass; ``rows`` (B, T): the segments of this pass, None: one each row."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    @contextmanager
    def of(self, rows: torch.Tensor | None) -> Iterator[None]:
        """Forward passes within go over ``rows``."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Set position ids (B, T), and over segments also who sees whom.

        Without segments positions begin with 0 at each row's first real token: TRL pads on the left and names none, so
        a row's words would stand at other positions than where they were sampled. Rotary embeddings are relative, but
        not their rounding: that alone moves log-probabilities by up to 1e-4.
        """
        mask = kwargs.get("attention_mask")
        if self.rows is not None:
            if self.rows.shape != kwargs["input_ids"].shape:
                raise ValueError(f"segments {tuple(self.rows.shape)} for ids {tuple(kwargs['input_ids'].shape)}")
            # With a cache transformers takes the row for one sequence that goes on.
            kwargs |= {"position_ids": restarting(self.rows), "attention_mask": None, "use_cache": False}
        elif mask is not None and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return args, kwargs


def restarting(rows: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) that begin with 0 wherever the segment number of ``rows`` (B, T) changes."""
    places = torch.arange(rows.shape[-1], device=rows.device).expand(rows.shape)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    return places - (places * first).cummax(-1).values


def padded_segments(samples: Sequence[Sample]) -> torch.Tensor | None:
    """Segment numbers (B, P + C) of samples as TRL pads them: prompt parts left to P, the rest right to C tokens.

    None where every sample is a single segment: such rows need nothing but their attention mask.
    """
    if all(len(sample.starts) == 1 for sample in samples):
        return None
    before = max(sample.prompt_length for sample in samples)
    after = max(len(sample.ids) - sample.prompt_length for sample in samples)
    rows = torch.full((len(samples), before + after), RIGHT)
    for row, sample in zip(rows, samples, strict=True):
        shift = before - sample.prompt_length
        row[:shift] = LEFT
        for number, place in enumerate(sample.segments, 1):
            row[shift + place.start : shift + place.stop] = number
    return rows
