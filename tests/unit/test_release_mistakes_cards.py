"""A mistake of published releases, and that it can't be made here: test people who were trained on."""

from __future__ import annotations

import pytest

from envs.card_files import save_cards
from envs.card_set import assign_splits, find_leaks, load_cards, persona_text
from envs.cards import PersonaCard
from envs.importers.convert import Origin, import_cards
from scripts import attune
from scripts.card_reports import leak_lines
from tests.unit.recorded import RLVER, SAGE, needs_sage


def released() -> list[PersonaCard]:
    """The cards under the splits that they were published with."""
    test = import_cards(str(SAGE), Origin(kind="sage", source="SAGE", licence="MIT", split="test")).cards
    return test + import_cards(str(RLVER), Origin(kind="rlver", source="RLVER", licence="MIT", split="train")).cards


@needs_sage
def test_54_of_100_test_cards_reuse_a_training_persona() -> None:
    """What `attune cards check` says names all 54 before anything is trained; splitting by person leaves none."""
    cards = released()
    *named, summary = leak_lines(cards)
    assert len(named) == 54 and len({line.split()[0] for line in named}) == 54
    assert all(line.startswith("zh-sage-") and "zh-rlver-" in line for line in named)
    assert "54 of 100 test cards tell of a person who stands in another split too" in summary

    splits = assign_splits(cards)
    moved = [card.model_copy(update={"split": splits[card.id]}) for card in cards]
    train, held_out = ({persona_text(c) for c in moved if (c.split == "train") is side} for side in (True, False))
    assert train and held_out and not train & held_out
    assert find_leaks(moved) == []


@needs_sage
@pytest.mark.slow
def test_the_commands_refuse_the_published_splits_and_mend_them(tmp_path, capsys):
    for name, split in (("sage", "test"), ("rlver", "train")):
        save_cards([card for card in released() if card.split == split], tmp_path / name)
    assert attune.main(["cards", "check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("tell of the same person") == 54
    assert attune.main(["cards", "split", str(tmp_path), "--by", "persona"]) == 0
    assert attune.main(["cards", "check", str(tmp_path)]) == 0
    assert len(load_cards([tmp_path])) == 600
