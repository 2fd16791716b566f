"""Rows of several segments: positions, who sees whom, and likelihoods as of each segment alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_policy import tiny_model
from trainers.packing import LEFT, RIGHT, Positions, padded_segments, restarting
from trainers.samples import Sample


def sample(prompt: int, *lengths: int) -> Sample:
    """A row of segments of these lengths; ids by place."""
    total, starts = sum(lengths), [sum(lengths[:number]) for number in range(len(lengths))]
    ids = tuple((7 * place + 3 * total) % 250 for place in range(total))
    return Sample(ids, (-1,) * prompt + (0,) * (total - prompt), (0.0,) * total, prompt, tuple(starts))


def test_positions_begin_again_in_every_segment_and_in_the_padding():
    rows = torch.tensor([[0, 0, 1, 1, 1, 2, 2, -1], [1, 1, 1, 2, 3, 3, 3, 3]])
    assert restarting(rows).tolist() == [[0, 1, 0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 0, 1, 2, 3]]


def test_rows_are_padded_as_the_library_pads_prompts_and_completions():
    rows = padded_segments([sample(2, 4, 3), sample(1, 3)])
    assert rows is not None
    assert rows.tolist() == [[1, 1, 1, 1, 2, 2, 2], [LEFT, 1, 1, 1, RIGHT, RIGHT, RIGHT]]


def test_rows_of_one_segment_need_no_numbers():
    assert padded_segments([sample(2, 4), sample(1, 3)]) is None


def test_without_segments_positions_are_counted_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    _, given = Positions()(torch.nn.Identity(), (), {"input_ids": mask, "attention_mask": mask})
    assert given["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]] and given["attention_mask"] is mask


def test_segments_of_other_rows_than_these_are_refused():
    positions = Positions()
    with positions.of(torch.ones(1, 3)), pytest.raises(ValueError, match="segments"):
        positions(torch.nn.Identity(), (), {"input_ids": torch.ones(1, 4)})
    assert positions.rows is None


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_log_probabilities_of_a_packed_row_are_those_of_each_segment_alone(model_dir, attention, training):
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation=attention).train(training)
    positions = Positions()
    model.register_forward_pre_hook(positions, with_kwargs=True)
    samples = [sample(9, 20, 31, 1, 17), sample(3, 12, 26), sample(5, 8)]
    rows = padded_segments(samples)
    assert rows is not None
    width = max(one.prompt_length for one in samples)
    ids, mask = torch.zeros_like(rows), torch.zeros_like(rows)
    for row, one in enumerate(samples):
        first = width - one.prompt_length
        ids[row, first : first + len(one.ids)] = torch.tensor(one.ids)
        mask[row, first : first + len(one.ids)] = 1
    with torch.no_grad():
        with positions.of(rows):
            packed = logps(model(input_ids=ids, attention_mask=mask).logits)
        unaware = logps(model(input_ids=ids, attention_mask=mask).logits)
        furthest = 0.0
        for row, one in enumerate(samples):
            first = width - one.prompt_length
            for segment in one.segments:
                alone = logps(model(input_ids=torch.tensor([one.ids[segment]])).logits)[0]
                place = slice(first + segment.start, first + segment.stop)
                assert (packed[row, place] - alone).abs().max() < 1e-5
                furthest = max(furthest, float((unaware[row, place] - alone).abs().max()))
    assert furthest > 1e-2  # segments that see each other tell


def logps(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.float(), dim=-1)
