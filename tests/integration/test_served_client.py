"""A client that a real vLLM server plays, with schema-constrained answers: random weights, valid JSON, sound turns."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from envs.card_set import load_cards
from envs.client_spec import SPECS_DIR
from envs.dialogue import DialoguePlan, run_dialogue
from envs.supporters import FixedReplies
from tests.tiny_policy import tiny_model, tiny_tokenizer
from trainers import assembly
from trainers.client_models import ModelPool, check_client
from trainers.config_file import load_config
from trainers.replay import check_dialogue
from trainers.usage import usage_of

pytest.importorskip("vllm")
pytestmark = [pytest.mark.integration, pytest.mark.slow]
CONTEXT = 16_384  # tokens, which are bytes here


def plain_model(folder: Path) -> Path:
    """A tiny random model with room for a client's prompts, that writes printable ASCII alone.

    xgrammar lets control characters stand in strings, which JSON forbids; a model that knows language writes none.
    """
    tiny_model(folder)
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": CONTEXT}), encoding="utf-8")
    weights, vocabulary = load_file(folder / "model.safetensors"), tiny_tokenizer().get_vocab()
    for token, index in vocabulary.items():
        if not (len(token) == 1 and (token == "Ġ" or "!" <= token <= "~")):  # Ġ stands for the space
            weights["model.embed_tokens.weight"][index] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_served_model_plays_a_client_whose_turns_can_be_verified(tmp_path: Path) -> None:
    folder = plain_model(tmp_path / "model")
    given = [f"client.model.serve.model={folder}", f"client.model.serve.context_tokens={CONTEXT}"]
    brief = yaml.safe_load((SPECS_DIR / "attune-brief-v1.yaml").read_text(encoding="utf-8"))
    brief["llm"] |= {"max_tokens": 1024}  # a character is a token here
    (tmp_path / "brief.yaml").write_text(yaml.safe_dump(brief), encoding="utf-8")
    config = load_config(None, [f"client.spec={tmp_path / 'brief.yaml'}", "dialogue.max_turns=2", *given])
    spec, card = assembly.client_spec(config), load_cards()[0]
    check_client(config.client, spec, [card])

    with ModelPool(config, tmp_path) as models:
        client = models.maker(config.client, spec)(card, 5)
        replies = FixedReplies(["That sounds heavy.", "What did she say then?"])
        played = asyncio.run(run_dialogue(DialoguePlan("served", card, spec, 5, client, replies)))
        usage = usage_of(client)
        (told,) = models.report()

    assert played.error is None
    calls = [call for turn in played.turns for call in turn.client.appraisal["calls"]]
    taken = [json.loads(call["raw"]) for call in calls if call["rejected"] is None]
    assert {frozenset(answer) for answer in taken} <= {
        frozenset(("said", "fit", "inner", "feeling", "change")),
        frozenset(("attitude", "goal", "tone", "content", "draft", "message", "goodbye")),
    }
    assert {call["model"] for call in calls} == {assembly.served_name(folder, str(folder))}
    assert check_dialogue(played, card, spec) is None
    assert usage is not None and usage.requests == len(calls) == told["requests"]
    assert usage.prompt_tokens == told["prompt_tokens"] > 1000
