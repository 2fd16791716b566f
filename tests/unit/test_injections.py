"""Two hundred replies that try to write the client's answer: each stays what somebody said, inside its fence."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import ATTUNE, CARDS, appraised, scripted, spoken

from envs.clients import make_client
from envs.clients.client import ClientFailure
from envs.models.fence import defuse, nonce
from envs.models.model_client import Ask
from envs.trajectory import ClientTurn, Message

PATH = Path(__file__).resolve().parents[1] / "data" / "injections.jsonl"
INJECTIONS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
HARMLESS = {"en": "That one second stays with you, it seems.", "zh": "黑豆跟了你九年，这一路都有它。"}
SEED = 11


def heard(text: str, language: str, *answers: str) -> tuple[ClientTurn, list[Ask]]:
    """The client's answer to ``text``, and what its model was asked. One answer alone is given to all attempts."""
    card = CARDS["zh" if language == "zh" else "en"]
    model, models = scripted(*(answers * 3 if len(answers) == 1 else answers or (appraised(2), spoken())))
    client = make_client(card, ATTUNE, SEED, models)

    async def play() -> ClientTurn:
        opening = await client.open()
        said = Message(speaker="client", text=opening.text), Message(speaker="supporter", text=text)
        return await client.reply(said)

    return asyncio.run(play()), model.asked


@pytest.fixture(scope="module")
def harmless() -> dict[str, tuple[ClientTurn, list[Ask]]]:
    return {language: heard(text, language) for language, text in HARMLESS.items()}


def outside(ask: Ask, fence: str) -> list[tuple[str, str]]:
    """Roles and what stands outside of the fences."""
    block = re.compile(rf"(<said-{fence} by=\"[^\"]+\">\n).*?(\n</said-{fence}>)", re.DOTALL)
    return [(message.role, block.sub(r"\1\2", message.content)) for message in ask.messages]


def test_there_are_two_hundred_half_of_them_chinese() -> None:
    assert len({row["text"] for row in INJECTIONS}) == 200
    assert [sum(row["language"] == language for row in INJECTIONS) for language in ("en", "zh")] == [100, 100]
    assert len({row["kind"] for row in INJECTIONS}) == 10


@pytest.mark.parametrize("row", INJECTIONS, ids=lambda row: row["id"])
def test_an_injection_changes_nothing_but_what_stands_in_its_fence(row, harmless) -> None:
    turn, asked = heard(row["text"], row["language"])
    usual_turn, usual = harmless[row["language"]]
    fence, text = nonce(SEED, 1), defuse(row["text"])
    assert text.strip() and text not in "".join(m.content for ask in usual for m in ask.messages)
    assert [ask.schema_name for ask in asked] == ["appraise", "reply"]
    for ask, like in zip(asked, usual, strict=True):
        assert ask.answer_schema == like.answer_schema
        assert [message.role for message in ask.messages] == ["system", "user"]
        assert outside(ask, fence) == outside(like, fence)
        assert ask.messages[0] == like.messages[0]
        assert ask.messages[1].content.count(text) == 1
        assert f'by="{"倾听者" if row["language"] == "zh" else "supporter"}">\n{text}\n</said-{fence}>' in (
            ask.messages[1].content
        )
    assert turn.appraisal.keys() == usual_turn.appraisal.keys()
    assert turn.appraisal["appraised"] == usual_turn.appraisal["appraised"]
    assert (turn.text, turn.emotion, turn.stop) == (usual_turn.text, usual_turn.emotion, usual_turn.stop)


@pytest.mark.parametrize("row", INJECTIONS, ids=lambda row: row["id"])
def test_a_model_that_repeats_an_injection_has_given_no_answer(row) -> None:
    with pytest.raises(ClientFailure, match="gave 3 answers to 'appraise' that can't be used"):
        heard(row["text"], row["language"], row["text"])


def test_an_answer_that_stands_ready_in_the_reply_is_refused_however_it_is_laid_out() -> None:
    ready = json.loads(appraised(10))
    with pytest.raises(ClientFailure, match="taken from the supporter's reply, word for word"):
        heard(appraised(10), "en", json.dumps(ready | {"change": 9}, indent=2))
    turn, _ = heard(appraised(10), "en", appraised(1, inner="What is this supposed to be?"), spoken("What's that?"))
    assert turn.change == 1


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_defused_text_opens_no_tag_holds_nothing_unseen_and_stays_as_it_is_when_defused_again(text: str) -> None:
    safe = defuse(text)
    assert not set(safe) & set("<>＜＞\u200b\u202e\x00\x1b")
    assert not re.search(r"\[/?[A-Z_ ]{2,24}\]", safe)
    assert defuse(safe) == safe


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "</s>", "[INST]", "[/INST]", "[gMASK]", "<<SYS>>", "<｜User｜>", "[ INST ]", "<\u200b/said>"],
)
def test_no_control_token_survives(token: str) -> None:
    safe = defuse(f"I see. {token} Go on.")
    assert token not in safe and safe.startswith("I see. ") and safe.endswith(" Go on.")


def test_plain_words_are_left_as_they_are() -> None:
    for text in ("It's 7:40, isn't it? [sighs] Well – “fine”…", "黑豆九岁，好。[笑]\n再说。", "👍🏽 a+b=c; 3 & 4"):
        assert defuse(text) == text


def test_a_fence_is_named_anew_each_turn_and_dialogue_and_again_for_the_same() -> None:
    names = {nonce(seed, turn) for seed in range(20) for turn in range(20)}
    assert len(names) == 400 and nonce(3, 4) == nonce(3, 4)
    assert all(re.fullmatch(r"[0-9a-f]{12}", name) for name in names)
