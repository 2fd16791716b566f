"""Formats with thoughts: what the client hears, what stands in later prompts, and what is trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.client_spec import load_spec
from envs.clients.appraisal import AppraisalClient
from envs.dialogue import DialoguePlan, run_dialogue
from envs.errors import InputError
from envs.trajectory import Generation, Message, Stop
from rewards.format import SPANS, FormatReward, format_flaws, heard_part
from tests.tiny_policy import CHATML, ScriptedServer, a_card, tiny_tokenizer
from trainers.chat_template import ChatTemplate, check_template, read_prompt
from trainers.policy import PolicySupporter, Sampling
from trainers.samples import build_sample

# As DeepSeek-R1 has it: the generation prompt opens the thought, and earlier replies stand without it.
OPENING = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
TOKENIZERS = {opened: tiny_tokenizer(OPENING if opened else CHATML) for opened in (False, True)}
TEMPLATES = {
    (form, opened): check_template(TOKENIZERS[opened], "be kind.", form)
    for form in ("think", "kardia")
    for opened in (False, True)
}
TOKENIZER = TOKENIZERS[False]
END = TEMPLATES["think", False].end_of_turn

THOUGHT = st.text("ABC\n 思考 ", max_size=8)  # what must not be heard is in capitals, or in these two characters
SPOKEN = st.text("xyz\n 好🙂", max_size=8)
HIDDEN = set("ABC思考")


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def spans(*texts: str) -> str:
    return "".join(f"<|{name}_begin|>{text}<|{name}_end|>" for name, text in zip(SPANS, texts, strict=True))


@st.composite
def replies(draw: st.DrawFn, form: str, opened: bool) -> str:
    """A reply as the policy writes it, in order or not: whatever is hidden stands within an open tag."""
    one, two, spoken = draw(THOUGHT), draw(THOUGHT), draw(SPOKEN)
    begin = "" if opened else "<think>"
    if form == "think":
        shapes = [
            f"{begin}{one}</think>{spoken}",
            f"{begin}{one}",
            f"{begin}{one}</think>{spoken}<think>{two}",
            f"{begin}{one}</think>{two}</think>{spoken}",
        ]
    else:
        whole = spans(one, two, one, spoken)
        shapes = [
            whole,
            whole.removesuffix("<|response_end|>"),
            whole.partition("<|response_begin|>")[0],
            whole + f"<|understanding_begin|>{two}",
            whole + whole,
        ]
        shapes = [f"{one}</think>{shape}" for shape in shapes] if opened else shapes
    return draw(st.sampled_from(shapes if opened else [*shapes, spoken]))


CASES = st.sampled_from(sorted(TEMPLATES)).flatmap(
    lambda case: st.tuples(
        st.just(case),
        st.lists(st.tuples(replies(*case), st.sampled_from([[END], []])), min_size=1, max_size=4),
    )
)


def talked(template: ChatTemplate, sampled: Sequence[Sequence[int]]) -> tuple[ScriptedServer, list[Generation]]:
    server = ScriptedServer(sampled)
    supporter = PolicySupporter(server, template, None, 0, Sampling(max_tokens=8, max_context=4096))

    async def dialogue() -> list[Generation]:
        messages: list[Message] = []
        said = []
        for turn in range(len(sampled)):
            messages.append(Message(speaker="client", text=f"well {turn}"))
            said.append(await supporter.reply(messages))
            messages.append(Message(speaker="supporter", text=said[-1].text))
        return said

    return server, asyncio.run(dialogue())


@settings(max_examples=300, deadline=None)
@given(CASES)
def test_no_thought_reaches_the_client_or_a_later_prompt(case):
    kind, written = case
    template = TEMPLATES[kind]
    server, said = talked(template, [[*ids_of(text), *end] or [END] for text, end in written])
    for generation in said:
        assert not HIDDEN & set(generation.text)
        assert "think" not in generation.text and "_begin|>" not in generation.text
    for prompt in server.prompts:
        assert not HIDDEN & set(TOKENIZER.decode(prompt))


@settings(max_examples=300, deadline=None)
@given(CASES)
def test_of_packed_dialogues_too_the_trained_tokens_are_exactly_the_sampled_ones(case):
    kind, written = case
    template = TEMPLATES[kind]
    sampled = [[*ids_of(text), *end] or [END] for text, end in written]
    server, said = talked(template, sampled)
    sample = build_sample(said, END, retold=True)
    assert sample.sampled_ids == tuple(token for ids in sampled for token in ids)
    assert [lp for lp, ours in zip(sample.logprobs, sample.policy_mask, strict=True) if ours] == server.logprobs
    assert sample.ids[-1] == END and list(sample.ids[: sample.prompt_length]) == server.prompts[0]
    # Before every reply stands, in its own segment, exactly the prompt that it was sampled after.
    places = [place for place, ours in enumerate(sample.policy_mask) if ours]
    first = 0
    for prompt, ids in zip(server.prompts, sampled, strict=True):
        start = max(start for start in sample.starts if start <= places[first])
        assert list(sample.ids[start : places[first]]) == prompt
        first += len(ids)


def test_the_later_prompt_is_what_the_chat_template_renders_of_what_was_heard():
    sampled = [[*ids_of("<think>tired</think>\n\nI hear you."), END], [END]]
    server, said = talked(TEMPLATES["think", False], sampled)
    messages = [("system", "be kind."), ("user", "well 0"), ("assistant", "I hear you."), ("user", "well 1")]
    chat = [{"role": role, "content": content} for role, content in messages]
    assert server.prompts[1] == ids_of(TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    assert said[0].written == "<think>tired</think>\n\nI hear you."


def test_where_the_template_opens_the_thought_earlier_replies_stand_without_it_and_the_record_with_it():
    sampled = [[*ids_of("tired</think>I hear you."), END], [*ids_of("so so"), END], [END]]
    server, said = talked(TEMPLATES["think", True], sampled)
    third = TOKENIZER.decode(server.prompts[2])
    assert third.count("<think>") == 1 and third.endswith("assistant\n<think>\n")
    assert "assistant\nI hear you.<|im_end|>" in third and "assistant\n<|im_end|>" in third
    assert [generation.text for generation in said] == ["I hear you.", "", ""]
    assert said[0].written == "<think>tired</think>I hear you."
    assert format_flaws(said[0].written, "think") == [] and format_flaws(said[1].written, "think") != []


def test_what_was_sampled_in_a_thought_is_not_seen_from_the_next_segment():
    sampled = [[*ids_of("<think>A</think>x"), END], [*ids_of("y"), END], [*ids_of("z"), END]]
    server, said = talked(TEMPLATES["think", False], sampled)
    sample = build_sample(said, END, retold=True)
    # The second reply has no thought, so the third prompt goes on where it ended.
    assert sample.starts == (0, len(server.prompts[0]) + len(sampled[0]))
    with pytest.raises(ValueError, match="turn 1"):
        build_sample(said, END)


def merging_tokenizer() -> Any:
    """Letters and two merges: a tag's end with the reply's beginning, and a space with it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [">h", "Ġh"]
    vocab = {symbol: number for number, symbol in enumerate([*letters, *merged])}
    bare = Tokenizer(models.BPE(vocab=vocab, merges=[(">", "h"), ("Ġ", "h")]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    bare.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def test_the_sampled_ids_themselves_stand_in_the_history_unless_a_tag_ends_within_one():
    tokenizer = merging_tokenizer()
    template = check_template(tokenizer, "be kind.", "think")
    vocab = tokenizer.get_vocab()
    spaced = ids_of("<think>a</think> hi", tokenizer)
    assert template.heard_ids(spaced) == spaced[-2:] == [vocab["Ġh"], vocab["i"]]
    joined = ids_of("<think>a</think>hi", tokenizer)
    assert joined[-2:] == [vocab[">h"], vocab["i"]]
    assert template.heard_ids(joined) == [vocab["h"], vocab["i"]]


def test_a_reply_in_which_a_control_token_stands_is_told_again_without_it():
    ids = [*ids_of("<think>a</think>so <|endoftext|>it is"), END]
    assert TEMPLATES["think", False].heard_ids(ids) == ids_of("so it is")


@pytest.mark.parametrize(
    ("text", "form", "heard"),
    [
        ("no tag at all", "think", "no tag at all"),
        ("no tag at all", "kardia", "no tag at all"),
        ("<think>a", "think", ""),
        ("<think>a</think>b<think>c", "think", "b"),
        ("x" + spans("a", "b", "c", "d") + "y", "kardia", "d"),
        (spans("a", "b", "c", "d").removesuffix("<|response_end|>"), "kardia", "d"),
        ("<|understanding_begin|>a<|understanding_end|>b", "kardia", ""),
        ("<think>t</think>" + spans("a", "b", "c", "d"), "kardia", "d"),
    ],
)
def test_what_is_heard_of_a_reply_that_breaks_its_form(text, form, heard):
    assert heard_part(text, form) == heard


@pytest.mark.parametrize(("form", "opened"), sorted(TEMPLATES))
def test_a_dialogue_goes_on_after_a_reply_in_which_nothing_was_said(form, opened):
    silent = "<|understanding_begin|>A" if form == "kardia" else "<think>A"
    server = ScriptedServer([[*ids_of(silent), END]] * 3)
    supporter = PolicySupporter(server, TEMPLATES[form, opened], None, 0, Sampling(max_tokens=32, max_context=4096))
    card, spec = a_card(), load_spec("appraisal-v1").model_copy(update={"max_turns": 3})
    talk = asyncio.run(run_dialogue(DialoguePlan("0", card, spec, 0, AppraisalClient(card, spec, 0), supporter)))
    assert talk.stop is not Stop.ERROR and talk.turns
    assert {turn.supporter.text for turn in talk.turns} == {""}
    assert asyncio.run(FormatReward(form).score(talk)).value == 0


def test_a_template_that_tells_earlier_replies_differently_each_time_is_refused():
    counting = "{{ '(' + (messages | length | string) + ')' }}" + CHATML
    with pytest.raises(InputError, match="policy: the chat template"):
        check_template(tiny_tokenizer(counting), "be kind.", "think")
    late = CHATML.replace(
        "+ m['content']", "+ ('late' if loop.index > 4 and m['role'] == 'user' else '') + m['content']"
    )
    with pytest.raises(InputError, match="puts something else after a later reply"):
        check_template(tiny_tokenizer(late), "be kind.", "think")


def test_a_template_that_opens_thoughts_is_refused_for_plain_replies():
    with pytest.raises(InputError, match=r"policy\.format: think may suit"):
        check_template(TOKENIZERS[True], "be kind.")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("form", ["think", "kardia"])
def test_the_system_message_asks_for_the_format(language, form):
    plain, asked = read_prompt(language), read_prompt(language, form=form)
    assert asked.startswith(plain + "\n\n")
    tags = (
        ("<think>", "</think>")
        if form == "think"
        else [f"<|{span}_{end}|>" for span in SPANS for end in ("begin", "end")]
    )
    assert all(tag in asked for tag in tags)
