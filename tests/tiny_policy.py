"""A tiny random policy with a byte tokenizer, and a client that reacts to bytes: the whole loop in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from envs.cards import Language, PersonaCard, load_card
from envs.client_spec import ClientSpec, load_spec
from envs.trajectory import ClientTurn, Message, Score, Trajectory
from trainers.chat_template import ChatTemplate, check_template, load_tokenizer
from trainers.policy_server import Sampled, SoleEngine

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CARDS = Path(__file__).resolve().parent.parent / "configs" / "cards" / "en"


def tiny_tokenizer(chat_template: str = CHATML) -> Any:
    """One token per byte, ChatML control tokens, and an unflagged control token, as Qwen3 has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bare.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(directory: Path, seed: int = 0) -> Path:
    """Write a random Qwen2 of two layers with its tokenizer to ``directory``."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def a_card() -> PersonaCard:
    """Some real card."""
    return load_card(sorted(CARDS.glob("*.yaml"))[0])


def a_spec(max_turns: int) -> ClientSpec:
    """The embedded client's rules with another turn limit."""
    return load_spec("appraisal-v1").model_copy(update={"max_turns": max_turns})


class ByteClient:
    """Feels better by the share of ASCII letters in a reply, from 30; its words depend on its seed alone."""

    def __init__(self, card: PersonaCard, seed: int) -> None:
        self._seed, self._emotion = seed, 30.0

    async def open(self) -> ClientTurn:
        """Says hello."""
        return ClientTurn(text=f"hello {self._seed % 7}", emotion=self._emotion, written_change=0, change=0)

    async def reply(self, history: Sequence[Message]) -> ClientTurn:
        """Reacts to the last reply."""
        heard = history[-1].text
        change = 10.0 * sum(letter.isascii() and letter.isalpha() for letter in heard) / max(1, len(heard))
        self._emotion = min(100.0, self._emotion + change)
        return ClientTurn(text="and then", emotion=self._emotion, written_change=change, change=change)


async def emotion_reward(trajectory: Trajectory) -> Score:
    """The final emotion as a share."""
    assert trajectory.final_emotion is not None
    return Score(name="emotion", value=trajectory.final_emotion / 100)


class ScriptedServer(SoleEngine):
    """Answers with the given ids, one list a request, and keeps what it was asked. An exhausted script raises."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self._replies = [tuple(ids) for ids in replies]
        self.prompts: list[list[int]] = []
        self.seeds: list[int] = []
        self.logprobs: list[float] = []

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        adapter: str | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        stop_ids: Sequence[int] = (),
        session: int | None = None,
    ) -> Sampled:
        """The next reply; a reply that doesn't end on a stop id was cut off."""
        ids = self._replies.pop(0)
        logprobs = tuple(-1.0 - 0.01 * (len(self.logprobs) + position) for position in range(len(ids)))
        self.prompts.append(list(prompt_ids))
        self.seeds.append(seed)
        self.logprobs += logprobs
        return Sampled(ids, logprobs, tuple(prompt_ids), "stop" if ids[-1] in stop_ids else "length")

    def publish(self, adapter_dir: Path) -> str:
        """Nothing to load."""
        return adapter_dir.name

    def retire(self, name: str) -> None:
        """Nothing to unload."""


def kind_templates(model_dir: Path) -> dict[Language, ChatTemplate]:
    """The tiny policy's chat template with a short system prompt."""
    return {"en": check_template(load_tokenizer(model_dir), "Be kind.")}
