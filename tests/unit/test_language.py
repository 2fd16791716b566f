"""Language measures: what replies look like, beside what they score."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from envs.cards import Act, load_card
from envs.client_spec import load_spec
from envs.clients import make_client
from envs.dialogue import DialoguePlan, run_dialogue
from envs.supporters import MixingSupporter
from envs.trajectory import Generation
from tests.unit.dialogues import MODEL_CARD, card, percept, trajectory
from trainers.evaluation import DialogueKey
from trainers.language import distinct_bigrams, measure_language, perceived, perplexity, repeated_sentences, tokens
from trainers.statistics import Resampling

ANN, BEN = card("en-ann"), card("en-ben")
FEW = Resampling(resamples=100)
SPEC = load_spec("appraisal-v1")
VOCABULARY = 13
END = 0


def test_shares_are_taken_over_replies():
    noticed = [percept(acts=["question", "reflection"], words=6), percept(gibberish=0.2, words=2)]
    noticed.append(percept(gibberish=0.19))
    rows = [trajectory(ANN, 0, [50, 60], percepts=noticed[:2]), trajectory(BEN, 0, [50], percepts=noticed[2:])]
    found = measure_language(rows, SPEC, FEW)
    assert found.replies == 3
    assert found.garbled.mean == pytest.approx(1 / 3, abs=1e-6)
    assert found.words.mean == 4
    assert found.acts[Act.QUESTION].mean == pytest.approx(1 / 3, abs=1e-6)
    assert found.acts[Act.REFLECTION].mean == 1
    assert found.acts[Act.BLAMING].mean == 0
    assert found.perplexity is None


def test_replies_to_a_client_that_records_no_percept_are_read_again_to_the_same_percepts():
    who = load_card(MODEL_CARD)
    key = DialogueKey(who.id, who.language, 0)
    plan = DialoguePlan("x", who, SPEC, 5, make_client(who, SPEC, 5), MixingSupporter("en", key.dialogue_seed))
    played = asyncio.run(run_dialogue(plan))
    silent = tuple(t.model_copy(update={"client": t.client.model_copy(update={"appraisal": {}})}) for t in played.turns)
    again = played.model_copy(update={"turns": silent})
    assert perceived(again, SPEC.perceiver) == [turn.client.appraisal["perceived"] for turn in played.turns]
    assert measure_language([again], SPEC, FEW) == measure_language([played], SPEC, FEW)


def test_a_sentence_said_earlier_in_the_dialogue_is_repeated_whatever_its_case_and_marks():
    assert repeated_sentences(["I see. Go on!", "I  see, go on.", "go on"]) == (1, 4)
    assert repeated_sentences(["嗯。慢慢说。", "慢慢说！"]) == (1, 3)
    assert repeated_sentences(["", "..."]) == (0, 0)


def test_a_sentence_said_in_another_dialogue_is_not_repeated():
    same = [Generation(text="I see.")]
    rows = [trajectory(ANN, 0, [50], same), trajectory(BEN, 0, [50], same)]
    assert measure_language(rows, SPEC, FEW).repeated.mean == 0


def test_distinct_bigrams_are_counted_in_windows_of_one_size():
    # "a b a b" has the bigrams ab, ba, ab: two of three; a bigram doesn't reach over the end of a reply.
    assert distinct_bigrams(["a b a b"], window=3) == pytest.approx(2 / 3, abs=1e-6)
    assert distinct_bigrams(["a b", "c d", "a b"], window=3) == pytest.approx(2 / 3, abs=1e-6)
    assert distinct_bigrams(["a b a b"] * 50, window=3) == pytest.approx(2 / 3, abs=1e-6)
    assert distinct_bigrams(["a b"], window=3) is None


def test_each_chinese_character_is_a_token():
    assert tokens("It’s 3 o'clock, 你好。") == ["it’s", "3", "o'clock", "你", "好"]


def _policy_replies() -> list[Generation]:
    first = Generation(text="x", prompt_ids=(1, 2, 3), ids=(4, 5, END), logprobs=(-1.0, -1.0, -1.0))
    second = Generation(text="y", prompt_ids=(1, 2, 3, 4, 5, END, 6), ids=(7, 8), logprobs=(-1.0, -1.0))
    return [first, second]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Any:
    torch = pytest.importorskip("torch")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("tiny")
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder / "random")
    model.lm_head.weight.data.zero_()
    model.save_pretrained(folder / "uniform")
    return folder


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity(tiny):
    rows = [trajectory(ANN, 0, [50, 60], _policy_replies()), trajectory(BEN, 0, [50, 60], _policy_replies())]
    found = perplexity(rows, tiny / "uniform", END, FEW)
    assert found is not None
    assert found.mean == pytest.approx(VOCABULARY, rel=1e-5)
    assert found.n == 10


def test_perplexity_counts_sampled_tokens_only_each_given_the_dialogue_so_far(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny / "random", dtype=torch.float32).eval()
    losses = []
    for reply in _policy_replies():
        for position, token in enumerate(reply.ids):
            before = torch.tensor([[*reply.prompt_ids, *reply.ids[:position]]])
            with torch.inference_mode():
                losses.append(-float(torch.log_softmax(model(before).logits[0, -1], dim=-1)[token]))
    found = perplexity([trajectory(ANN, 0, [50, 60], _policy_replies())], tiny / "random", END, FEW)
    assert found is not None
    assert found.mean == pytest.approx(math.exp(sum(losses) / 5), rel=1e-4)
    assert found.mean != pytest.approx(VOCABULARY, rel=0.05)


def test_scripted_replies_have_no_perplexity(tiny):
    assert perplexity([trajectory(ANN, 0, [50])], tiny / "uniform", END, FEW) is None
