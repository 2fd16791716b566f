"""The command that imports cards: what it asks for, writes and tells."""

from __future__ import annotations

import json
from pathlib import Path

from envs.card_set import load_cards
from scripts import attune
from tests.unit.foreign_rows import SAGE_ROW, imported, save


def command(tmp_path: Path, *more: str) -> list[str]:
    file = save(tmp_path / "rows.json", [SAGE_ROW])
    return ["cards", "import", "sage", file, "--out", str(tmp_path / "out"), *more]


SAID = ("--licence", "CC0-1.0", "--source", "a made-up collection")


def test_the_command_writes_cards_that_are_read_back_equal_and_tells_of_each_field(tmp_path, capsys):
    assert attune.main(command(tmp_path, *SAID, "--split", "test", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["cards"], report["fields"]["task"]["becomes"]) == (1, ["hidden_need", "need"])
    assert load_cards([tmp_path / "out"]) == imported(tmp_path, "sage", [SAGE_ROW], split="test").cards


def test_the_command_asks_for_licence_and_source_and_never_overwrites(tmp_path, capsys):
    assert attune.main(command(tmp_path, "--source", "s")) == 2
    assert "--licence: is missing; name the licence" in capsys.readouterr().err
    assert attune.main(command(tmp_path, "--licence", "MIT")) == 2
    assert "--source: is missing; say where" in capsys.readouterr().err
    assert attune.main(command(tmp_path, "--licence", " ")) == 2
    told = capsys.readouterr().err
    assert "--licence: is missing" in told and "--source: is missing" in told
    assert not (tmp_path / "out").exists()
    assert attune.main(command(tmp_path, *SAID)) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert attune.main(command(tmp_path, *SAID, "--split", "dev")) == 2
    assert "there already; nothing was written" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_dry_run_shows_the_report_and_writes_nothing(tmp_path, capsys):
    assert attune.main(command(tmp_path, *SAID, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "notes.cha_group" in out and "1 of 1 rows became cards (1 zh); nothing written" in out
    assert not (tmp_path / "out").exists()


def test_a_field_whose_name_looks_like_markup_is_shown_as_it_is(tmp_path, capsys):
    file = save(tmp_path / "rows.json", [SAGE_ROW | {"[bold]x[/nothing]": 1}])
    assert attune.main(["cards", "import", "sage", file, "--dry-run", *SAID]) == 0
    assert "[bold]x[/nothing]" in capsys.readouterr().out


def test_the_command_refuses_a_file_of_which_no_row_becomes_a_card(tmp_path, capsys):
    file = save(tmp_path / "rows.json", [{"who": "Ine"}])
    assert attune.main(["cards", "import", "table", file, "--out", str(tmp_path / "o"), *SAID]) == 2
    assert "profile: is missing; add it" in capsys.readouterr().err
