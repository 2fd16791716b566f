"""The small policy: a tokenizer and a Qwen2-shaped model of a few million parameters, trained here from scratch.

It stands in for an open LLM where there is no GPU and no model hub, so that every later step is the real one. It speaks
plain English sentences and chooses them badly, because the supporter it learns from does all acts at random.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.hashing import content_hash, text_hash
from envs.supporters import BANKS_DIR, everyday_nouns
from envs.trajectory import Message
from trainers import corpus
from trainers.corpus import generate_corpus, generate_exchanges
from trainers.run_folder import CODE

SPECIAL = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # their ids are 0, 1, 2
# How the copying layer starts: spread of the embeddings, strength of what is copied, width of what is looked for.
EMBEDDING_STD, COPY_STRENGTH, LOOK_STRENGTH = 0.05, 0.5, 3.0
Progress = Callable[[str], None]

# What the words of the corpus follow from, besides cards and spec.
PLAYED_BY = (
    "envs/affect.py",
    "envs/dialogue.py",
    "envs/supporters.py",
    "envs/clients/app*.py",
    "envs/clients/speech.py",
    "envs/perception/*.py",
    "configs/perception/*",
)


@dataclass(frozen=True)
class BootstrapSettings:
    """Size and training of the small policy. Lengths in tokens; ``dialogues_per_card`` on the training cards.

    ``topic_weight``: what a word counts that the supporter takes up. ``sharpness`` multiplies the logits at the end: so
    short a training leaves a little likelihood on every wrong word, which plain sampling would often draw.
    """

    vocabulary: int = 3072
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    max_length: int = 1024
    dialogues_per_card: int = 24
    exchanges: int = 12000
    exchange_steps: int = 400
    exchange_batch: int = 16
    steps: int = 450
    batch: int = 12
    learning_rate: float = 3e-3
    warmup: float = 0.08
    weight_decay: float = 0.05
    topic_weight: float = 4.0
    sharpness: float = 1.5
    seed: int = 0


def bootstrap(
    cache: Path,
    cards: Sequence[PersonaCard],
    spec: ClientSpec,
    system_prompt: str,
    chat_template: str,
    settings: BootstrapSettings = BootstrapSettings(),
    progress: Progress = lambda line: None,
) -> Path:
    """The folder of the small policy, trained if ``cache`` doesn't hold one made from the same content.

    ``cards``: the training cards. The folder is complete before it gets its name.
    """
    key = _content_key(cards, spec, system_prompt, chat_template, settings)
    folder = cache / f"bootstrap-{key[:16]}"
    if folder.exists():
        return folder
    progress(f"generating {len(cards) * settings.dialogues_per_card} dialogues from {len(cards)} training cards")
    played = generate_corpus(cards, spec, settings.dialogues_per_card, settings.seed)
    dialogues = [chat(trajectory.messages[:-1], system_prompt) for trajectory in played]
    exchanges = [chat(talk) for talk in generate_exchanges(cards, settings.exchanges, settings.seed)]
    tokenizer = train_tokenizer([*dialogues, *exchanges], chat_template, settings)
    topics = frozenset(tokenizer.encode(f" {noun}", add_special_tokens=False)[0] for noun in everyday_nouns())
    short, long = ([encode(talk, tokenizer, topics, settings) for talk in talks] for talks in (exchanges, dialogues))
    model = train_model(short, long, tokenizer, settings, progress)
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def _content_key(
    cards: Sequence[PersonaCard], spec: ClientSpec, prompt: str, template: str, settings: BootstrapSettings
) -> str:
    played = sorted(path for pattern in PLAYED_BY for path in CODE.glob(pattern))
    code = [Path(__file__), Path(corpus.__file__), *sorted(BANKS_DIR.glob("*.yaml")), *played]
    made_by = [*(text_hash(path.read_text(encoding="utf-8")) for path in code), torch.__version__]
    return content_hash([[card.hash for card in cards], spec.hash, prompt, template, asdict(settings), made_by])


def chat(messages: Sequence[Message], system_prompt: str | None = None) -> list[dict[str, str]]:
    """What was said as chat messages from the supporter's side."""
    said = [message.as_seen_by("supporter") for message in messages]
    return [{"role": "system", "content": system_prompt}, *said] if system_prompt else said


def train_tokenizer(
    dialogues: Sequence[list[dict[str, str]]], chat_template: str, settings: BootstrapSettings
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over what is said in the dialogues; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((message["content"] for talk in dialogues for message in talk), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    wrapped.add_special_tokens({"additional_special_tokens": [START]})
    wrapped.chat_template = chat_template
    return wrapped


@dataclass(frozen=True)
class Example:
    """One dialogue: ids (T,) and the weight of each token's loss (T,)."""

    ids: np.ndarray
    weights: np.ndarray


def encode(
    talk: Sequence[dict[str, str]],
    tokenizer: PreTrainedTokenizerFast,
    topics: frozenset[int],
    settings: BootstrapSettings,
) -> Example:
    """Ids in the chat template, and what each counts: the supporter's words 1, ``topics`` more, all else nothing."""
    ids: list[int] = []
    weights: list[float] = []
    for index, message in enumerate(talk):
        text = _rendered(talk[: index + 1], tokenizer)[len(_rendered(talk[:index], tokenizer)) if index else 0 :]
        header = f"{START}{message['role']}\n"
        said = tokenizer.encode(text[len(header) :], add_special_tokens=False)
        for part, part_weights in (
            (tokenizer.encode(header, add_special_tokens=False), None),
            (said, _weights(said, message["role"], topics, settings)),
        ):
            ids += part
            weights += part_weights or [0.0] * len(part)
    return Example(np.array(ids[: settings.max_length]), np.array(weights[: settings.max_length], dtype=np.float32))


def _weights(said: Sequence[int], role: str, topics: frozenset[int], settings: BootstrapSettings) -> list[float]:
    if role != "assistant":
        return [0.0] * len(said)
    return [settings.topic_weight if token in topics else 1.0 for token in said]


def _rendered(talk: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.apply_chat_template(list(talk), tokenize=False))


def new_model(tokenizer: PreTrainedTokenizerFast, settings: BootstrapSettings) -> Qwen2ForCausalLM:
    """A fresh model in fp32."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,  # one value head for each, so that together they can carry a whole token
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
        dtype="float32",
    )
    torch.manual_seed(settings.seed)
    model = Qwen2ForCausalLM(config)
    _begin_with_copying(model, settings)
    return model


@torch.no_grad()
def _begin_with_copying(model: Qwen2ForCausalLM, settings: BootstrapSettings) -> None:
    """Start the middle layer with value and output maps whose product is a multiple of the identity.

    After mimetic initialisation (arXiv 2305.09828): what a head looks at, it makes more likely. Taking up what somebody
    just said is then there from the first step, where so short a training would not find it. Wider query and key maps
    let the heads look at something in particular.
    """
    model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_STD)
    attention: Any = model.model.layers[settings.layers // 2].self_attn
    basis = torch.linalg.qr(torch.randn(settings.hidden, settings.hidden)).Q
    attention.v_proj.weight.copy_(basis)
    attention.o_proj.weight.copy_(COPY_STRENGTH * basis.T)
    for wide in (attention.q_proj, attention.k_proj):
        wide.weight.mul_(LOOK_STRENGTH)


def train_model(
    exchanges: Sequence[Example],
    dialogues: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    settings: BootstrapSettings,
    progress: Progress,
) -> Qwen2ForCausalLM:
    """Next-token training with AdamW, warm-up and a cosine to zero: single exchanges first, then whole dialogues."""
    model = new_model(tokenizer, settings).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    steps = settings.exchange_steps + settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, steps, settings.warmup))
    chance = random.Random(settings.seed)
    chosen = itertools.chain(
        itertools.islice(_batches(exchanges, settings.exchange_batch, chance), settings.exchange_steps),
        itertools.islice(_batches(dialogues, settings.batch, chance), settings.steps),
    )
    for step, batch in enumerate(chosen, 1):
        loss = _loss(model, *_padded(batch, SPECIAL.index(PAD)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == steps:
            progress(f"step {step}/{steps}  loss {loss.item():.3f}")
    with torch.no_grad():
        model.model.norm.weight.mul_(settings.sharpness)
    return model.eval()


def _schedule(step: int, steps: int, warmup: float) -> float:
    warm = max(1, int(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(examples: Sequence[Example], size: int, chance: random.Random) -> Iterator[list[Example]]:
    """Batches for ever, each example once a round, dialogues of like length together to save padding."""
    while True:
        shuffled = sorted(chance.sample(examples, len(examples)), key=lambda example: len(example.ids) // 32)
        batches = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        chance.shuffle(batches)
        yield from batches


def _padded(batch: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights, (B, T) each, padded on the right."""
    length = max(len(example.ids) for example in batch)
    ids = np.full((len(batch), length), pad)
    weights = np.zeros((len(batch), length), dtype=np.float32)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = example.ids
        weights[row, : len(example.ids)] = example.weights
    return torch.from_numpy(ids), torch.from_numpy(weights)


def _loss(model: Qwen2ForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy in nats; logits are made only where there is a loss."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # right padding: causal attention needs no mask
    kept = weights[:, 1:] > 0
    logits = model.lm_head(hidden[kept])
    losses = cross_entropy(logits, ids[:, 1:][kept], reduction="none")
    weight = weights[:, 1:][kept]
    return (losses * weight).sum() / weight.sum()
