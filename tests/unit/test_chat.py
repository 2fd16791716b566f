"""``attune chat``: a person at either side of the talk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from envs.receipts import read_log
from envs.trajectory import Generation, Message, Stop
from scripts.attune import main
from scripts.commands import chat
from tests.scripted_server import ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
CARD = "en-bus-depot-letter"
REPLIES = ["That letter must have been a shock after so many years.", "What is the hardest hour of your day?"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def types(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str]) -> None:
    """Let the person type ``lines``, then end the input."""
    waiting = iter(lines)

    def typed() -> str:
        for line in waiting:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", typed)


def test_a_person_supports_the_embedded_client_and_sees_how_it_feels(monkeypatch, tmp_path, capsys) -> None:
    types(monkeypatch, REPLIES)
    out = tmp_path / "talk.jsonl"
    assert main(["chat", "--card", CARD, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    (line,) = read_log(out)
    said = line.trajectory
    assert [turn.supporter.text for turn in said.turns] == REPLIES
    assert said.opening is not None and said.opening.text in shown
    assert f"({said.turns[0].client.emotion:g}, {said.turns[0].client.change:+g})" in shown
    assert (
        "You ended the talk." in shown and said.stop is Stop.ERROR and said.error == "Left: the person ended the talk"
    )


def test_a_hidden_emotion_is_told_only_when_the_talk_is_over(monkeypatch, capsys) -> None:
    types(monkeypatch, REPLIES[:1])
    assert main(["chat", "--card", CARD, "--hide-emotion"]) == 0
    *talk, end = capsys.readouterr().out.strip().splitlines()
    assert not any("(3" in line or "(4" in line for line in talk)
    assert "Emotion: " in end and "→" in end


def test_a_talk_that_the_client_ends_says_so(monkeypatch, capsys) -> None:
    types(monkeypatch, ["Pull yourself together, it's your own fault."] * 20)
    assert main(["chat", "--card", CARD]) == 0
    assert "ends the talk" in capsys.readouterr().out or "goodbye" in capsys.readouterr().out


def test_a_person_supports_a_client_that_a_model_plays(monkeypatch, capsys) -> None:
    types(monkeypatch, REPLIES[:1])
    with ScriptedServer() as server:
        given = [f"client.model.endpoint.base_url={server.url}", "client.model.endpoint.model=scripted"]
        assert main(["chat", "--card", CARD, "client.spec=sage-v1", *given]) == 0
        assert [r["response_format"]["json_schema"]["name"] for r in server.requests[:2]] == ["appraise", "reply"]
    assert "client: " in capsys.readouterr().out


class Echo:
    """A supporter that says back what it heard."""

    async def reply(self, messages: Sequence[Message]) -> Generation:
        return Generation(text=f"You say: {messages[-1].text}")


def test_a_person_who_plays_the_client_speaks_first_and_is_answered(monkeypatch, capsys) -> None:
    types(monkeypatch, ["I can't sleep.", "Since May.", ""])
    said = asyncio.run(chat._talk(Echo(), None))
    assert [message.speaker for message in said] == ["client", "supporter"] * 2
    assert "supporter: You say: Since May." in capsys.readouterr().out


def test_the_talk_as_client_is_shown_the_role_and_kept(monkeypatch, tmp_path, capsys) -> None:
    types(monkeypatch, ["I can't sleep."])
    monkeypatch.setattr(chat, "_policy", lambda *_: Echo())
    out = tmp_path / "talk.jsonl"
    assert main(["chat", "--card", CARD, "--as", "client", "--out", str(out)]) == 0
    assert "Desmond Achterberg" in capsys.readouterr().out
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert [message["text"] for message in json.loads(line)["messages"]] == [
        "I can't sleep.",
        "You say: I can't sleep.",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--card", "en-nobody"], "no card has this id"),
        (["--card", CARD, "--adapter", "x"], "add --as client"),
        (["--card", CARD, "--as", "client", "--adapter", "nowhere"], "has no adapter_config.json"),
        (["--card", CARD, "client.spec=sage-v1"], "is played by a language model; name one"),
    ],
)
def test_what_cannot_be_played_is_refused_with_the_remedy(options, said, capsys) -> None:
    assert main(["chat", *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_model_that_does_not_answer_ends_the_talk_as_a_failed_run(monkeypatch, capsys) -> None:
    types(monkeypatch, REPLIES[:1])
    dead = ["client.model.endpoint.base_url=http://127.0.0.1:9/v1", "client.model.endpoint.model=m"]
    assert main(["chat", "--card", CARD, "client.spec=sage-v1", *dead, "dialogue.deadline_seconds=1"]) == 1
    assert "the talk broke off: ClientFailure" in " ".join(capsys.readouterr().err.split())
