"""The public chat templates that the pinned TRL carries: our shapes write what they write, and get the same verdict."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trl

from tests.chat_template_shapes import REPLIES, SHAPES, SYSTEM, WORDS, reason_in, refusal, rendered, shape_tokenizer

PUBLIC = Path(trl.__file__).parent / "chat_templates"
SHAPE_OF = {  # TRL's file: our shape
    "qwen2_5": "qwen2_5",
    "qwen3": "qwen3",
    "qwen3_5_nothink": "qwen3_no_think",
    "qwen3_5_think": "qwen3_thinking",
    "llama3": "llama3",
    "llama3_1": "llama3_1",
    "llama3_2": "llama3_2",
    "gemma": "gemma2",
    "gemma3": "gemma3",
    "deepseek_r1_distill": "deepseek_r1_distill",
    "phi3": "phi3",
    "phi3_5": "phi3",
}
BESIDES = {
    **dict.fromkeys(["gemma4", "gemma4_v5", "lfm2", "cohere", "qwen3_instruct_2507"], None),
    **dict.fromkeys(
        ["qwen3_6", "glm4moe", "gptoss", "nemotron_3_nano", "deepseekv3"],
        "other text stands before a reply than it was written after",
    ),
}


def public(name: str) -> str:
    return (PUBLIC / f"{name}.jinja").read_text(encoding="utf-8")


def verdict(text: str) -> str | None:
    tokenizer = shape_tokenizer(text)
    tokenizer.add_tokens(sorted(set(re.findall(r"<\|?[\w_]+\|?>", text))))
    message = refusal(tokenizer)
    return reason_in(message) if message else None


@pytest.mark.parametrize(("name", "shape"), SHAPE_OF.items())
def test_a_shape_writes_a_dialogue_as_the_public_template_does(name, shape):
    (ours,) = (path.read_text(encoding="utf-8") for path in SHAPES if path.stem == shape)
    system = None if name == "gemma" else SYSTEM
    for turns in range(1, 5):
        dialogue = WORDS[:turns], REPLIES[: turns - 1], system
        assert rendered(shape_tokenizer(ours), *dialogue) == rendered(shape_tokenizer(public(name)), *dialogue)
    assert verdict(ours) == verdict(public(name))


@pytest.mark.parametrize(("name", "reason"), BESIDES.items())
def test_other_public_templates_get_the_verdict_that_the_page_names(name, reason):
    assert verdict(public(name)) == reason
