"""``attune gates check`` over the three kinds of dialogue files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envs.errors import InputError
from envs.receipts import TrajectoryLog
from envs.trajectory import Generation
from scripts.attune import main
from scripts.commands.gates import app
from tests.unit import dialogues
from tests.unit.dialogues import card, trajectory

CLOSES = "I'm only human, I get tired too."


def run(file: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["check", str(file), "--json", *options], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "dialogues.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return file


def test_roles_and_speakers_are_read_alike(tmp_path: Path) -> None:
    roles = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello, how are you?"}]
    speakers = [{"speaker": "client", "text": "Hello, how are you?"}, {"speaker": "supporter", "text": CLOSES}]
    file = write(
        tmp_path,
        {"messages": [*roles, {"role": "assistant", "content": CLOSES}]},
        "",
        {"messages": speakers, "id": "b"},
    )
    found = run(file)
    assert found["gates"]["false_humanity"] == {"closed": 2, "open": 0, "none": 0}
    assert [(one["line"], one["id"]) for one in found["dialogues"]] == [(1, None), (3, "b")]


def test_the_card_gives_the_language_of_a_trajectory(tmp_path: Path) -> None:
    replies = [Generation(text="That sounds very hard for you.")]
    played = dialogues.trajectory(dialogues.card("en-x"), 0, [45], replies).model_copy(update={"card_id": "zh-x"})
    found = run(write(tmp_path, played.model_dump_json()), "--gate", "medical")
    assert found["gates"] == {"medical": {"closed": 0, "open": 0, "none": 1}}
    assert run(write(tmp_path, played.model_dump_json()), "--language", "en")["gates"]["medical"]["open"] == 1


def test_the_table_shows_the_evidence(tmp_path: Path) -> None:
    file = write(tmp_path, {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": CLOSES}]})
    done = CliRunner().invoke(app, ["check", str(file)], catch_exceptions=False)
    assert "false_humanity" in done.stdout
    assert "only human" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"messages": []}', '{"messages": [1]}', '{"messages": [{"role": "judge", "content": "x"}]}',
     '{"messages": [{"role": "user", "content": null}]}', '{"turns": []}'],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = write(tmp_path, {"messages": [{"role": "user", "content": "Hi."}]}, line)
    with pytest.raises(InputError, match=r"dialogues\.jsonl:2"):
        CliRunner().invoke(app, ["check", str(file)], catch_exceptions=False)


@pytest.mark.parametrize("options", [["--gate", "kindness"], ["--language", "de"]])
def test_an_unknown_gate_or_language_is_refused(tmp_path: Path, options: list[str]) -> None:
    file = write(tmp_path, {"messages": [{"role": "user", "content": "Hi."}]})
    with pytest.raises(InputError, match=options[1]):
        CliRunner().invoke(app, ["check", str(file), *options], catch_exceptions=False)


def test_a_runs_own_file_is_read_with_its_receipts_and_refused_where_it_was_changed(tmp_path, capsys) -> None:
    file = tmp_path / "trajectories.jsonl"
    replies = [Generation(text="I am a real person, not a machine."), Generation(text="What was that like?")]
    TrajectoryLog(file).append(trajectory(card("en-ann"), 0, [50, 60], replies))
    assert main(["gates", "check", str(file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["dialogues"]
    assert found["id"] == "evaluation/en-ann/0" and found["language"] == "en"
    file.write_text(file.read_text(encoding="utf-8").replace("not a machine", "not a human"), encoding="utf-8")
    assert main(["gates", "check", str(file)]) == 2
    assert "turn 1" in capsys.readouterr().err
