"""Mistakes of published releases that a whole run could make, and that they can't be made, or not unseen, here."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import make_run

from envs.models.endpoint_spec import EndpointSpec
from scripts.tables import evaluation_table
from tests.unit.test_tables import ANN, BASE, BEN, SETTINGS, shown
from trainers.evaluation import summarise
from trainers.model_card import read_run, render
from trainers.verification import verify_run

ROOT = Path(__file__).resolve().parents[2]
# What tokens of well-known services look like: a fixed beginning and a long tail.
TOKENS = re.compile(
    rb"sk-[A-Za-z0-9_-]{32,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}"
    rb"|eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}\."
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("this tree is no git checkout, so nothing in it is committed")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_an_api_token_committed() -> None:
    files = tracked_files()
    assert len(files) > 200
    assert TOKENS.search(b"token = hf_" + b"a1" * 17)
    assert [path.name for path in files if TOKENS.search(path.read_bytes())] == []


def test_a_configuration_has_no_place_for_a_key() -> None:
    assert not {name for name in EndpointSpec.model_fields if "key" in name} - {"key_env"}


def test_one_judge_for_training_and_the_headline_is_said_beside_the_headline() -> None:
    """One client may be used for both; whoever reads the number is told so."""
    found = {"tuned": summarise(BASE, [ANN, BEN], SETTINGS)}
    same, other = (shown(evaluation_table(found, trained_with=name)) for name in ("appraisal-v1", "sage-v1"))
    assert "client appraisal-v1, as in training" in " ".join(same.split())
    assert "client appraisal-v1; training had sage-v1" in " ".join(other.split())


def test_the_model_card_says_when_the_client_that_gave_the_reward_gave_the_score(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record = read_run(run, verify_run(run))
    card = render(record, folder="x", parameters=1, adapter_hash="0" * 64)
    assert "The same kind of client that gave the reward in training gave this score" in card
    other = render(replace(record, trained_with=("sage-v1",)), folder="x", parameters=1, adapter_hash="0" * 64)
    assert "Training's client was `sage-v1`; the evaluation's, `appraisal-v1`, was not met in training." in other
    several = replace(record, trained_with=("attune-v1", "sage-v1"))
    said = "Training's clients were `attune-v1`, `sage-v1`; the evaluation's"
    assert said in render(several, folder="x", parameters=1, adapter_hash="0" * 64)
    assert "gave this score" not in other
