from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.errors import InputError, RunError
from scripts import attune, console

ROOT = Path(__file__).resolve().parents[2]
CARD = "en-bus-depot-letter"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts a command of one function in the place of ``cards``."""

    def place(body: Callable[[], None]) -> None:
        app = console.command_app("attune cards")
        app.command()(lambda json=False: body())
        monkeypatch.setattr(attune.importlib, "import_module", lambda name: SimpleNamespace(app=app))

    return place


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("run.yaml: seed: is missing"), 2, "error: run.yaml: seed: is missing"),
        (RunError("port 8000 is taken [x]"), 1, "error: port 8000 is taken [x]"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "the disk is full (runs/x)"),
    ],
)
def test_an_error_that_a_person_can_mend_is_told_without_traceback(
    command: Any, capsys: pytest.CaptureFixture[str], error: Exception, status: int, said: str
) -> None:
    command(raising(error))
    assert attune.main(["cards"]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""


def test_verbose_shows_the_traceback_wherever_it_stands(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(InputError("x")))
    for line in (["--verbose", "cards"], ["cards", "--verbose"]):
        assert attune.main(line) == 2
        assert "Traceback" in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_shows_its_traceback(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(ZeroDivisionError("by zero")))
    assert attune.main(["cards"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "this should not have happened: ZeroDivisionError: by zero" in err


def test_an_interrupted_command_exits_with_130(command: Any) -> None:
    command(raising(KeyboardInterrupt()))
    assert attune.main(["cards"]) == 130


def test_a_command_that_ends_well_exits_with_0(command: Any) -> None:
    command(lambda: None)
    assert attune.main(["cards"]) == 0


def test_an_error_under_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["train", "--json", "run.sed=1"]) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "error": "command line: run.sed: is not a known key; did you mean 'run.seed'?",
        "status": 2,
    }


def test_what_a_library_prints_under_json_goes_to_stderr(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        print("setting accelerator to CPU")
        console.print_json({"cards": 3})

    command(body)
    assert attune.main(["cards", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"cards": 3}
    assert "setting accelerator" in err


def test_an_unknown_command_is_answered_with_the_likely_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["trian"]) == 2
    assert "trian: there is no such command; did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_option_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["train", "--speed"]) == 2
    assert "--speed" in capsys.readouterr().err


def help_of(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "scripts.attune", *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_every_command_shows_help_with_an_example() -> None:
    modules = sorted(path.stem.replace("_", "-") for path in (ROOT / "scripts/commands").glob("[a-z]*.py"))
    assert {"cards", "train"} <= set(modules)
    listed = help_of()
    for name in modules:
        assert name in listed
        assert "Example: attune " in help_of(name).replace("\n", " ")
    for words in (("cards", "check"), ("cards", "show"), ("cards", "stats")):
        assert f"Example: attune {' '.join(words)}" in help_of(*words)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from scripts import attune; attune.main(['train', '--help']); attune.main(['--help']); "
        "print([m for m in ('torch', 'transformers', 'trl', 'vllm') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_dry_run_prints_the_resolved_config_and_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["train", "--config", "configs/grpo_qwen2.5_7b_8gpu.yaml", "trainer.steps=3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "  steps: 3\n" in out
    assert "GPU 4, 5, 6, 7" in out
    assert "the KV cache holds" in out


def test_a_dry_run_under_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["train", "-c", "configs/grpo_qwen2.5_7b.yaml", "--dry-run", "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    plan = json.loads(line)
    assert plan["config"]["run"]["name"] == "grpo-qwen2.5-7b"
    [device] = plan["memory"]
    assert device["fits"] is True
    assert device["total"] == sum(device["bytes"].values())


def test_a_dry_run_of_an_unknown_model_says_why_there_is_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["train", "--dry-run", "policy.model=acme/gpt-9"]) == 0
    assert "no memory estimate: acme/gpt-9: not among" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["client.spec=nobody-v1"], "client spec 'nobody-v1'"),
        (["trainer.cards_per_step=1000", "trainer.micro_batch=1"], "cards.train_split: 'train' has"),
    ],
)
def test_a_run_with_the_wrong_cards_or_client_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert attune.main(["train", "--dry-run", *overrides]) == 2
    assert said in capsys.readouterr().err


def test_cards_check_accepts_the_shipped_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["cards", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["leaks"] == []


def test_cards_check_names_the_file_of_a_malformed_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("id: en-bad\n", encoding="utf-8")
    assert attune.main(["cards", "check", str(tmp_path)]) == 2
    assert f"{tmp_path}/bad.yaml: language: is missing" in capsys.readouterr().err


def test_cards_check_finds_a_person_in_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / f"configs/cards/en/{CARD.removeprefix('en-')}.yaml").read_text(encoding="utf-8")
    split = next(line for line in text.splitlines() if line.startswith("split:"))
    other = "split: dev" if split == "split: train" else "split: train"
    (tmp_path / "one.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "two.yaml").write_text(text.replace(CARD, "en-copy").replace(split, other), encoding="utf-8")
    assert attune.main(["cards", "check", str(tmp_path)]) == 2
    assert "tell of the same person (likeness 1.00)" in capsys.readouterr().err


def test_cards_show_finds_a_card_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["cards", "show", CARD, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["id"] == CARD
    assert len(shown["hash"]) == 64


def test_cards_show_of_an_unknown_id_names_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["cards", "show", "bus-depot"]) == 2
    assert f"near it: {CARD}" in capsys.readouterr().err


def test_cards_stats_counts_every_card_once_in_each_grouping(capsys: pytest.CaptureFixture[str]) -> None:
    assert attune.main(["cards", "stats", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    for grouping in ("language", "hidden need", "temperament", "age", "risk", "start emotion"):
        assert sum(sum(row.values()) for row in counted[grouping].values()) == counted["cards"]
    assert sum(counted["splits"].values()) == counted["cards"]
    assert attune.main(["cards", "stats"]) == 0
    assert "deep_empathy" in capsys.readouterr().out
