"""Which chat templates can carry a dialogue, why the others can't, and that docs/templates.md says the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.errors import InputError
from envs.trajectory import Message
from tests.chat_template_shapes import (
    CONTROL_TOKENS,
    REPLIES,
    ROOT,
    SHAPES,
    SHIPPED,
    SYSTEM,
    WORDS,
    refusal,
    rendered,
    shape_tokenizer,
    tokenizer_of,
)
from tests.tiny_policy import CHATML, ScriptedServer, tiny_tokenizer
from trainers.chat_template import ChatTemplate, check_template
from trainers.policy import PolicySupporter, Sampling

WHY = "<think>\nThey are sad.\n</think>\n\n"
TOKENIZERS = {path: tokenizer_of(path) for path in SHIPPED}
TEMPLATES = {path: check_template(tokenizer, SYSTEM) for path, tokenizer in TOKENIZERS.items()}


def shape(name: str) -> Path:
    return ROOT / "tests" / "data" / "chat_templates" / f"{name}.jinja"


def prompts_of(template: ChatTemplate, words: Sequence[str], replies: Sequence[str]) -> list[list[int]]:
    """The prompt ids of each reply in a dialogue in which the policy says ``replies``."""
    scripted = [(*template.tokenizer.encode(r, add_special_tokens=False), template.end_of_turn) for r in replies]
    server = ScriptedServer(scripted)
    supporter = PolicySupporter(server, template, None, 0, Sampling(max_context=4096))

    async def dialogue() -> None:
        messages: list[Message] = []
        for said in words:
            messages.append(Message(speaker="client", text=said))
            messages.append(Message(speaker="supporter", text=(await supporter.reply(messages)).text))

    asyncio.run(dialogue())
    return server.prompts


def accepted(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if refusal(tokenizer_of(path)) is None]


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the table under a heading of docs/templates.md, without the marks of code."""
    text = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
            yield [cell.strip().replace("`", "").replace("\\|", "|") for cell in cells]


def with_thoughts(tokenizer: Any) -> str:
    """The verdict on a template where earlier replies are told anew without their thoughts."""
    try:
        opened = check_template(tokenizer, SYSTEM, "think").thought_opened
    except InputError:
        return "refused"
    return "accepted, opened by the prompt" if opened else "accepted"


@pytest.mark.parametrize("path", [*accepted(SHAPES), *SHIPPED], ids=lambda path: path.stem)
def test_an_accepted_template_renders_a_dialogue_of_four_turns_as_the_ids_that_were_sent(path):
    tokenizer = tokenizer_of(path)
    sent = prompts_of(check_template(tokenizer, SYSTEM), WORDS, REPLIES)
    for turn, prompt in enumerate(sent):
        text = rendered(tokenizer, WORDS[: turn + 1], REPLIES[:turn])
        assert prompt == tokenizer.encode(text, add_special_tokens=False)
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(sent))


@given(
    words=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=5),
    replies=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=5, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_a_shipped_template_writes_every_message_as_it_was_said(words, replies):
    for path in SHIPPED:
        tokenizer = TOKENIZERS[path]
        sent = prompts_of(TEMPLATES[path], words, replies[: len(words)])
        text = rendered(tokenizer, words, replies[: len(words) - 1])
        assert tokenizer.decode(sent[-1]) == text


@pytest.mark.parametrize(
    ("name", "reason", "shown"),
    [
        ("mistral_v0_3", "the system prompt moves to the newest message", "'<s>[INST] Be kind."),
        ("mistral_nemo", "the system prompt moves to the newest message", "becomes '<s>[INST]placeholder one"),
        ("mistral_v0_1_system", "other text stands before a reply", "' [/INST]' becomes ' [/INST] '"),
        (
            "deepseek_r1_distill",
            "other text stands before a reply",
            r"<think>\n' becomes '<｜Assistant｜>'",
        ),
        ("qwen3_thinking", "other text stands before a reply", r"<think>\n' becomes"),
        ("qwen3_no_think", "other text stands before a reply", r"<think>\n\n</think>\n\n' becomes"),
        ("windowed", "an earlier message is left out", "placeholder one of the client"),
    ],
)
def test_a_template_that_changes_what_came_before_is_refused_with_before_and_after(name, reason, shown):
    message = refusal(tokenizer_of(shape(name)))
    assert message and f"is not prefix-preserving: with the client's next message, {reason}" in message
    assert shown in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2", r"can't render .*, since it has no system role \(there is no system role\)"),
        ("mistral_v0_1", r"can't render .*, since it has no system role \(roles have to alternate\)"),
        ("llama3_2", "writes today's date, and a resumed run would have another prompt: .*03 Feb 2001.*10 Nov 2012"),
        ("numbered", r"puts something else after a later reply: .*user 3\\n' becomes .*user 5\\n'"),
        ("one_line", "rewrites a text of several lines: .*first line second line third"),
        ("skips_empty", "rewrites an empty text: "),
    ],
)
def test_a_template_that_breaks_a_dialogue_in_another_way_is_refused_with_the_reason(name, reason):
    assert re.search(reason, refusal(tokenizer_of(shape(name))) or "")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("m['content'].replace('\\n', ' ')", "a text of several lines"),
        ("m['content'] | replace('&', '&amp;')", "a text in capitals and markup"),
        ("m['content'].encode('ascii', 'ignore').decode()", "a text beyond ASCII"),
        ("m['content'].replace('padded', 'x')", "a text with white space at its edges"),
        ("(m['content'] or 'nothing')", "an empty text"),
    ],
)
def test_a_template_that_rewrites_a_text_is_refused_with_the_kind_of_text(said, what):
    assert f"rewrites {what}: " in (refusal(shape_tokenizer(CHATML.replace("m['content']", said))) or "")


def test_a_template_that_begins_with_a_count_of_messages_is_refused_with_both_counts():
    counted = refusal(shape_tokenizer("{{ messages | length }} messages" + CHATML)) or ""
    assert "what came before it is rendered differently: '2 messages<|im_start|>" in counted
    assert "becomes '4 messages<|im_start|>" in counted


def test_a_template_that_rewrites_every_text_is_refused_with_the_first():
    upper = shape_tokenizer(CHATML.replace("m['content']", "m['content'] | upper"))
    assert "leaves out the system prompt or rewrites it; " in (refusal(upper) or "")
    assert "leaves out, rewrites or repeats a message: 'placeholder one of the client'" in (refusal(upper, None) or "")


def test_a_template_that_words_a_later_turn_otherwise_is_refused():
    later = CHATML.replace(
        "m['content']", "m['content'] + (' (again)' if loop.index > 4 and m['role'] == 'user' else '')"
    )
    assert "puts something else after a later message of the client: " in (refusal(shape_tokenizer(later)) or "")


def test_a_template_that_merely_trims_is_accepted_and_history_keeps_the_edges():
    tokenizer = tokenizer_of(shape("llama3"))
    sent = prompts_of(check_template(tokenizer, SYSTEM), [" a ", "b"], [" c \n", "d"])
    assert "user<|end_header_id|>\n\n a <|eot_id|>" in tokenizer.decode(sent[1])
    assert "assistant<|end_header_id|>\n\n c \n<|eot_id|>" in tokenizer.decode(sent[1])


def test_a_template_that_would_refuse_a_system_prompt_is_accepted_without_one():
    assert refusal(tokenizer_of(shape("gemma2")), None) is None
    assert refusal(tokenizer_of(shape("mistral_v0_1")), None) is None
    assert refusal(tokenizer_of(shape("mistral_nemo")), None) is None


def test_a_template_whose_tokens_the_model_does_not_have_is_refused():
    assert "does not close a reply with a token of its own: '<|eot_id|>" in (
        refusal(tiny_tokenizer(shape("llama3").read_text(encoding="utf-8"))) or ""
    )


def test_a_template_with_unknown_tokens_is_sent_to_a_pattern_and_not_to_another_familys_file():
    message = refusal(
        shape_tokenizer("{% for m in messages %}<|turn>{{ m.content }}{% endfor %}{{ messages | length }}")
    )
    assert message and "policy.chat_template: one like configs/prompts/chatml.jinja with its own tokens" in message


@pytest.mark.parametrize("path", [path for path in SHAPES if path not in accepted(SHAPES)], ids=lambda path: path.stem)
def test_the_remedy_of_each_refusal_is_a_file_that_this_tokenizer_can_use(path):
    tokenizer = tokenizer_of(path)
    named = re.findall(r"configs/prompts/[\w/]+\.jinja", refusal(tokenizer) or "")
    assert named
    for file in named:
        tokenizer.chat_template = (ROOT / file).read_text(encoding="utf-8")
        assert refusal(tokenizer) is None


def taken_from_replies(tokenizer: Any) -> str:
    """What a template takes from replies in the history: edges (white space), thoughts, both or nothing."""
    system = None if "no system role" in (refusal(tokenizer) or "") else SYSTEM
    edges = rendered(tokenizer, WORDS[:2], ["\t kept \t"], system)
    thought = rendered(tokenizer, WORDS[:2], [WHY + "kept"], system)
    taken = {"edges": "\t kept \t" not in edges, "thoughts": "They are sad." not in thought}
    return ", ".join(what for what, is_taken in taken.items() if is_taken) or "nothing"


def test_the_page_says_of_each_shape_what_the_check_says():
    written = {row[0]: row[1:] for row in table("Shapes tried")}
    assert sorted(written) == [path.stem for path in SHAPES]
    for path in SHAPES:
        _, verdict, thoughtful, taken, remedy = written[path.stem]
        tokenizer = tokenizer_of(path)
        assert thoughtful == with_thoughts(tokenizer), path.stem
        message = refusal(tokenizer)
        assert taken == taken_from_replies(tokenizer), path.stem
        if message is None:
            end = tokenizer.decode([check_template(tokenizer, SYSTEM).end_of_turn])
            assert (verdict, remedy) == (f"accepted, closed by {end}", ""), path.stem
        else:
            said = message.removeprefix("policy: the chat template ").removeprefix(
                "is not prefix-preserving: with the "
            )
            assert said.removeprefix("client's next message, ").startswith(verdict.removeprefix("refused: ")), path.stem
            assert verdict.startswith("refused: ") and len(verdict) > 30, path.stem
            assert remedy.split(" or ") == [
                file.removeprefix("configs/prompts/") for file in re.findall(r"configs/prompts/[\w/]+\.jinja", message)
            ], path.stem


def test_the_page_names_each_shipped_template_with_the_token_that_closes_a_reply():
    assert {row[0]: row[2] for row in table("Shipped templates")} == {
        str(path.relative_to(ROOT)): TOKENIZERS[path].decode([TEMPLATES[path].end_of_turn]) for path in SHIPPED
    }


def test_pieces_are_tokenised_apart_though_the_whole_text_would_merge_across_them():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "Ċh"])}  # Ċ is the line break
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "h")]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    bare.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", bos_token="<|im_start|>")
    tokenizer.chat_template = CHATML
    (sent,) = prompts_of(check_template(tokenizer, SYSTEM), ["hello"], ["x"])
    whole = rendered(tokenizer, ["hello"], [])
    assert sent != tokenizer.encode(whole, add_special_tokens=False)
    assert len(sent) == len(tokenizer.encode(whole, add_special_tokens=False)) + 1
    assert tokenizer.decode(sent) == whole


def test_every_control_token_of_the_families_is_one_token():
    tokenizer = shape_tokenizer(CHATML)
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in CONTROL_TOKENS)


def test_a_tokenizer_that_begins_texts_with_a_space_begins_each_piece_with_one():
    vocabulary = {"▁": 0, **{chr(code): code for code in range(1, 128)}}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["[INST]", "[/INST]"], special_tokens=True)
    tokenizer.chat_template = shape("mistral_nemo").read_text(encoding="utf-8")
    opening = check_template(tokenizer, None).opening("hi")
    assert tokenizer.convert_ids_to_tokens(opening) == ["<s>", "[INST]", "▁", "h", "i", "[/INST]"]
