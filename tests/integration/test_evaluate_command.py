"""``attune evaluate`` with a tiny random policy in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.attune import main
from trainers.evaluation import read_trajectories

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from tests.tiny_policy import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run") / "adapters" / "final"
    # Weights that are not zero at the start, so that the adapter changes what is said.
    lora = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), lora).save_pretrained(folder)
    return folder


def _evaluate(tiny: Path, out: Path, *options: str) -> int:
    cards = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs/cards/en").glob("*.yaml"))
    few = [card for card in cards if "\nsplit: test\n" in (ROOT / card).read_text(encoding="utf-8")][:2]
    overrides = [
        f"policy.model={tiny}",
        "policy.max_new_tokens=4",
        "policy.context_tokens=4000",
        "engine.kind=transformers",
        f"cards.paths=[{','.join(few)}]",
        "dialogue.max_turns=2",
        "evaluation.bootstrap_resamples=100",
        "evaluation.seeds_per_card=1",
    ]
    return main(["evaluate", "--out", str(out), "--json", *overrides, *options])


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def base(tiny, tmp_path, capsys) -> Path:
    """The folder of an evaluation with two seeds."""
    assert _evaluate(tiny, tmp_path / "base", "--base", "--seeds", "2") == 0
    capsys.readouterr()
    return tmp_path / "base"


def test_base_and_adapter_play_the_same_dialogues_and_are_compared(tiny, adapter, tmp_path, capsys):
    assert _evaluate(tiny, tmp_path / "base", "--base") == 0
    base = json.loads(capsys.readouterr().out)
    assert (base["evaluation"]["cards"], base["evaluation"]["dialogues"], base["evaluation"]["errors"]) == (2, 2, 0)
    assert base["language"]["perplexity"]["mean"] > 1
    assert base["difference"] is None

    assert _evaluate(tiny, tmp_path / "tuned", "--adapter", str(adapter), "--against", str(tmp_path / "base")) == 0
    tuned = json.loads(capsys.readouterr().out)
    means = [found["evaluation"]["mean_final_emotion"]["mean"] for found in (base, tuned)]
    assert tuned["difference"]["mean_final_emotion"]["mean"] == pytest.approx(means[1] - means[0], abs=2e-6)

    first, second = read_trajectories(tmp_path / "base"), read_trajectories(tmp_path / "tuned")
    assert [(t.dialogue_id, t.seed) for t in first] == [(t.dialogue_id, t.seed) for t in second]
    spoken = [[turn.supporter.ids for turn in t.turns] for t in (*first, *second)]
    assert spoken[:2] != spoken[2:]
    assert {turn.supporter.policy_version for t in first for turn in t.turns} == {"base"}
    for name in ("trajectories.jsonl", "evaluation.json", "language.json", "comparison.json"):
        assert (tmp_path / "tuned" / name).is_file()


def test_an_evaluation_repeats_itself_bit_for_bit(base, tiny, tmp_path):
    assert _evaluate(tiny, tmp_path / "again", "--base", "--seeds", "2") == 0
    for name in ("trajectories.jsonl", "evaluation.json", "language.json"):
        assert (tmp_path / "again" / name).read_bytes() == (base / name).read_bytes()


def test_an_evaluation_whose_dialogues_break_off_fails_and_says_why(tiny, tmp_path, capsys):
    assert _evaluate(tiny, tmp_path / "short", "--base", "policy.context_tokens=8") == 1
    told = json.loads(capsys.readouterr().out)["error"]
    assert "2 of 2 dialogues broke off" in told and "policy.context_tokens" in told


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give either --base or --adapter DIR"),
        (["--base", "--adapter", "somewhere"], "give either --base or --adapter DIR"),
        (["--adapter", "nowhere"], "nowhere: has no adapter_config.json"),
        (["--base", "--split", "dev"], "no card of split 'dev'"),
        (["--base", "--against", "nowhere"], "nowhere/trajectories.jsonl: there is no such file"),
        (["--base", "trainer.stepz=1"], "trainer.stepz"),
    ],
)
def test_bad_input_is_told_before_anything_is_started(tiny, tmp_path, capsys, options, says):
    assert _evaluate(tiny, tmp_path / "out", *options) == 2
    assert says in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seeds", "1"], "comes from none of"),
        (["--seeds", "3"], "has 4 of the dialogues"),
        (["--seeds", "2", "dialogue.max_turns=3"], "other client rules"),
    ],
)
def test_a_comparison_with_another_evaluation_is_refused_before_anything_is_started(
    base, tiny, tmp_path, capsys, options, says
):
    assert _evaluate(tiny, tmp_path / "other", "--base", "--against", str(base), *options) == 2
    assert says in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "other").exists()
