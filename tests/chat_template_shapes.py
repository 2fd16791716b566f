"""The chat templates in tests/data/chat_templates and those we ship, each with a tokenizer that knows their tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from envs.errors import InputError
from tests.tiny_policy import tiny_tokenizer
from trainers.chat_template import check_template

ROOT = Path(__file__).resolve().parent.parent
SHAPES = sorted((ROOT / "tests" / "data" / "chat_templates").glob("*.jinja"))
SHIPPED = [
    ROOT / "configs" / "prompts" / "chatml.jinja",
    *sorted((ROOT / "configs" / "prompts" / "templates").glob("*.jinja")),
]
SYSTEM = "Be kind."
WORDS = ("hello", "I lost my job,\n\nand my flat.", "我很难过。", "thank you")
REPLIES = ("I hear you.", "That is\nhard.", "慢慢来。", "Take care.")
CONTROL_TOKENS = [
    *("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
]


def shape_tokenizer(chat_template: str) -> Any:
    """One token per byte, and one for each control token of the families."""
    tokenizer = tiny_tokenizer(chat_template)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS], True)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


def tokenizer_of(path: Path) -> Any:
    """``shape_tokenizer`` with the template in the file at ``path``."""
    return shape_tokenizer(path.read_text(encoding="utf-8"))


def refusal(tokenizer: Any, system_prompt: str | None = SYSTEM) -> str | None:
    """What check_template says against a template; None: it takes it."""
    try:
        check_template(tokenizer, system_prompt)
    except InputError as error:
        return str(error)
    return None


def reason_in(message: str) -> str:
    """What a refusal says, without the renderings that it shows."""
    said = message.removeprefix("policy: the chat template ")
    return re.split(r": | \(", said.removeprefix("is not prefix-preserving: with the client's next message, "))[0]


def rendered(tokenizer: Any, words: Sequence[str], replies: Sequence[str], system: str | None = SYSTEM) -> str:
    """What the template writes of a dialogue that waits for its next reply."""
    messages = [{"role": "system", "content": system}] if system else []
    for turn, said in enumerate(words):
        messages.append({"role": "user", "content": said})
        messages += [{"role": "assistant", "content": reply} for reply in replies[turn : turn + 1]]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
