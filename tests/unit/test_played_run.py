"""Runs and real cards with played clients: verified without a model, and true to the published recordings."""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from played import AnsweringModel, both, talk
from small_run import make_training

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec, load_spec
from envs.clients.prompts import need_text
from envs.hashing import canonical, content_hash, without
from envs.receipts import FIRST, sealed
from envs.trajectory import Trajectory
from trainers.manifest import MANIFEST, file_hash, line_sums, read_manifest, write_json
from trainers.verification import Verification, verify_run

SHARED = Path(os.environ.get("ATTUNE_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
SAGE = SHARED / "data" / "sage"
needs_sage = pytest.mark.skipif(not (SAGE / "cards.jsonl").is_file(), reason="the SAGE release is not on this machine")
LOG = "trajectories.jsonl"


# Verification


def forge(run: Path, change: Any) -> Verification:
    """Change the client's first turn of the first dialogue, renew receipts and manifest as a forger would, verify."""
    previous, lines = FIRST, []
    for number, raw in enumerate((run / LOG).read_text(encoding="utf-8").splitlines()):
        data = without(json.loads(raw), "receipt")
        if number == 0:
            change(data["turns"][0]["client"])
        data = sealed(Trajectory.model_validate(data), previous)
        previous = data["receipt"]["digest"]
        lines.append(canonical(data) + "\n")
    (run / LOG).write_text("".join(lines), encoding="utf-8")
    manifest = read_manifest(run)
    for entry in manifest["files"]:
        path = run / entry["path"]
        entry |= {"sha256": file_hash(path), "bytes": path.stat().st_size}
        if "line_sums" in entry:
            entry["line_sums"] = line_sums(path)
    manifest["digest"] = content_hash(without(manifest, "digest"))
    write_json(run / MANIFEST, manifest)
    return verify_run(run)


def pretend(client: dict[str, Any]) -> None:
    """Let the model have answered more kindly, and keep the rest in step with it."""
    appraisal = client["appraisal"]["members"][0]["appraisal"] if "members" in client["appraisal"] else None
    call = (appraisal or client["appraisal"])["calls"][0]
    call["raw"] = call["raw"].replace("A bit lighter.", "Quite at ease.")


@pytest.mark.parametrize("name", ["attune-v1", "rlver-challenging-v1", "ensemble-v1"])
def test_a_run_with_played_clients_is_verified_without_a_model_and_a_forged_answer_is_found(
    tmp_path: Path, name: str
) -> None:
    spec: ClientSpec = load_spec(name)
    run = make_training(tmp_path / "run", spec, both(AnsweringModel(lambda turn: (4, -2, 5)[turn % 3])))
    found = verify_run(run)
    assert found.verified, found.problem
    assert found.dialogues == 12 and found.checks["replay"].checked == found.turns > 40
    found = forge(run, pretend)
    assert found.problem and found.problem["line"] == 1 and "turn 1" in str(found.problem["message"])
    assert found.checks["replay"].ok is False and found.checks["emotions"].ok is not False


# The published cards and recordings


def published() -> list[PersonaCard]:
    """The benchmark's cards in free text, with the hidden theme kept apart from the scene."""
    cards = []
    for index, line in enumerate((SAGE / "cards.jsonl").read_text(encoding="utf-8").splitlines()):
        data = json.loads(line)
        given = {"id": f"zh-sage-{index}", "language": "zh", "split": "test", "source": "SAGE", "licence": "MIT"}
        parts = {"profile": data["player"], "situation": data["scene"].split("####隐藏主题")[0]}
        cards.append(PersonaCard(**given, **parts, need=data["task"], opening=data["first_talk"]))
    return cards


@needs_sage
def test_every_published_card_can_be_played_by_the_benchmarks_rules() -> None:
    cards = published()
    assert len(cards) == 100
    for card in cards:
        model = AnsweringModel()
        trajectory = talk(load_spec("sage-v1").model_copy(update={"max_turns": 1}), both(model), card=card)
        assert trajectory.emotions == [40, 43] and trajectory.opening and trajectory.opening.text == card.opening
        appraise, reply = ["\n".join(message.content for message in ask.messages) for ask in model.asked]
        for prompt in (appraise, reply):
            assert str(card.profile)[:200] in prompt and need_text(card) in prompt
        assert "回复之前你的情绪：40" in appraise and "你现在的状态：B。" in reply


@needs_sage
@pytest.mark.parametrize("path", sorted(SAGE.glob("recorded/*.jsonl.gz")), ids=lambda path: path.name.split(".")[0])
def test_the_recorded_changes_bring_back_the_recorded_emotions(path: Path) -> None:
    """An emotion that was recorded under 0 is 0 here, as the spec says; the talk has ended by then."""
    card, spec, compared = published()[0], load_spec("sage-v1"), 0
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in islice(file, 50):
            said = [message for message in json.loads(line)["history"] if message["role"] == "user"]
            recorded = [message["emotion-point"] for message in said]
            changes = [message["planning"]["change"] for message in said[1:]] + [0] * spec.max_turns
            emotions = talk(spec, both(AnsweringModel(lambda turn, c=changes: c[turn])), card=card).emotions
            count = min(len(emotions), len(recorded))
            assert emotions[:count] == [max(0, emotion) for emotion in recorded[:count]]
            compared += count - 1
    assert compared > 200
