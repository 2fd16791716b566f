"""Cards as files: a card as YAML, a folder of new ones, and another split in files that people keep by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from envs.card_set import load_card_files
from envs.cards import PersonaCard, Split
from envs.errors import InputError

_SPLIT_LINE = re.compile(r"""^(split:[ \t]*)(?P<quote>["']?)(?:train|dev|test)(?P=quote)(?=[ \t]*(?:\#.*)?$)""", re.M)


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks of lines, where YAML can hold them so without loss."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Reading takes these for line ends and folds them away, unless they are escaped.
    style = '"' if set("\r\x85\u2028\u2029") & set(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def card_yaml(card: PersonaCard) -> str:
    """The card as YAML that ``load_card`` reads back equal; what it leaves out is left out."""
    data: dict[str, Any] = card.model_dump(mode="json", exclude_none=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def save_cards(cards: Sequence[PersonaCard], folder: Path) -> list[Path]:
    """Write each card to ``folder``/ID.yaml. Raises InputError before anything is written when a file is already there,
    or a card below ``folder`` has one of the ids."""
    files = [folder / f"{card.id}.yaml" for card in cards]
    taken = {str(file) for file in files if file.exists()}
    if folder.is_dir() and any(folder.rglob("*.yaml")):
        ids = {card.id for card in cards}
        taken |= {str(file) for file, card in load_card_files([folder]).items() if card.id in ids}
    if taken:
        shown = sorted(taken)
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise InputError(f"{', '.join(shown[:3])}{more}: there already; nothing was written. Choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for card, file in zip(cards, files, strict=True):
            _write(file, card_yaml(card))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{folder}: can't be written to: {error}") from error
    return files


def planned_splits(files: Mapping[Path, PersonaCard], splits: Mapping[str, Split]) -> dict[Path, str]:
    """The new text of each file whose card has another split in ``splits`` ({card id: split}), all else as it is.

    Raises InputError when a file has no plain line ``split: ...``.
    """
    return {
        file: with_split(file, card, splits[card.id]) for file, card in files.items() if card.split != splits[card.id]
    }


def save_texts(texts: Mapping[Path, str]) -> None:
    """Write the text of each file, each file whole or not at all."""
    for file, text in texts.items():
        _write(file, text)


def with_split(file: Path, card: PersonaCard, split: Split) -> str:
    """The text of a card's file with another split. Raises InputError when that line can't be changed alone."""
    with file.open(encoding="utf-8", newline="") as stream:  # line ends as they are
        text = stream.read()
    changed, count = _SPLIT_LINE.subn(lambda line: f"{line[1]}{line['quote']}{split}{line['quote']}", text)
    expected = card.model_dump() | {"split": split}
    if count == 1:
        try:
            if PersonaCard.model_validate(yaml.safe_load(changed)).model_dump() == expected:
                return changed
        except (yaml.YAMLError, ValueError):
            pass  # told below, with the remedy
    raise InputError(f"{file}: write its split on a line of its own, as in `split: {card.split}`, and run it again")


def _write(file: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a card."""
    part = file.with_name(f".{file.name}.part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
    os.replace(part, file)
