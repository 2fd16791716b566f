"""Rows into cards: every field of every row is mapped, kept as a note, or listed as left out; a row that can't become a
card is listed with the cause."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from envs.card_set import same_persons
from envs.cards import HiddenNeed, Language, PersonaCard, Split, Temperament
from envs.errors import InputError, describe_validation
from envs.hashing import content_hash
from envs.importers.card_map import CARD_KEYS, CardMap, folded, load_map
from envs.importers.fields import Fields, plain
from envs.importers.rows import Row, read_rows
from envs.trajectory import Record

VALUES: dict[str, tuple[str, ...]] = {
    "hidden_need": tuple(HiddenNeed),
    "temperament": tuple(Temperament),
    "language": ("en", "zh"),
    "risk": ("none", "acute"),
}
HANZI_SHARE = 0.2  # of the letters; English with a Chinese name in it stays below, Chinese with Latin names above


class FieldUse(Record):
    """What became of one field, in rows: ``mapped`` to the card's keys in ``becomes``, ``noted``, ``left_out`` (whole
    or what was not mapped), or ``missing`` (absent or empty)."""

    becomes: tuple[str, ...] = ()
    mapped: int = 0
    noted: int = 0
    left_out: int = 0
    missing: int = 0


class Rejected(Record):
    """A row that became no card, and why."""

    where: str
    cause: str


class ImportReport(Record):
    """The account of an import. ``without``: how many cards lack a key that the map could have filled.

    ``unknown_values``: texts that stand for no value of an enumerated key, with counts; the key is then None.
    ``same_person``: ids of cards with the same persona text; all are kept, and belong into one split.
    """

    kind: str
    source_file: str
    rows: int
    cards: int
    languages: dict[str, int]
    fields: dict[str, FieldUse]
    without: dict[str, int]
    unknown_values: dict[str, dict[str, int]] = Field(default_factory=dict)
    same_person: tuple[tuple[str, ...], ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Imported:
    """The cards, in the order of the rows, and the account."""

    cards: list[PersonaCard]
    report: ImportReport


@dataclass(frozen=True)
class Origin:
    """What every card of an import says of where it comes from. ``language`` None: told or guessed row by row."""

    kind: str
    source: str
    licence: str
    split: Split = "train"
    language: Language | None = None


def import_cards(file: str, origin: Origin, overrides: Sequence[str] = ()) -> Imported:
    """Cards from ``file`` by the map of ``origin.kind``. Raises InputError for what can't be read or is no such map."""
    card_map = load_map(origin.kind, overrides)
    rows = read_rows(file)
    if not rows:
        raise InputError(f"{file}: holds no row")
    _check_columns(rows, card_map, overrides, file)
    return convert(rows, card_map, origin, file)


def convert(rows: Sequence[Row], card_map: CardMap, origin: Origin, file: str) -> Imported:
    """Cards from rows that were read from ``file``."""
    account = _Account()
    drafts: list[tuple[Row, dict[str, Any]]] = []
    for row in rows:
        fields = Fields(row.data, card_map)
        draft = _draft(fields, card_map, origin, account)
        account.count(fields)
        drafts.append((row, draft))
    prefix = _prefix(origin, file)
    stems = Counter(_stem(draft, row, prefix) for row, draft in drafts)
    cards, taken = [], set()
    for row, draft in drafts:
        stem = _stem(draft, row, prefix)
        if stems[stem] > 1:
            stem = f"{stem}-{_row_hash(row)[:8]}"
        name = next(name for name in _numbered(stem) if name not in taken)
        try:
            cards.append(PersonaCard.model_validate(draft | {"id": name}))
            taken.add(name)
        except ValidationError as error:
            account.rejected.append(Rejected(where=row.where, cause=describe_validation(error, name)))
    report = ImportReport(
        kind=origin.kind,
        source_file=file,
        rows=len(rows),
        cards=len(cards),
        languages=dict(sorted(Counter(card.language for card in cards).items())),
        fields=account.fields(len(rows)),
        without={key: n for key in CARD_KEYS if key != "id" and (n := sum(getattr(c, key) is None for c in cards))},
        unknown_values={key: dict(count) for key, count in account.unknown.items()},
        same_person=tuple(tuple(card.id for card in group) for group in same_persons(cards) if len(group) > 1),
        rejected=tuple(account.rejected),
    )
    return Imported(cards, report)


def _draft(fields: Fields, card_map: CardMap, origin: Origin, account: _Account) -> dict[str, Any]:
    """The card's content. What is wrong with it is left to the card's own validation."""
    draft: dict[str, Any] = {"split": origin.split, "source": origin.source, "licence": origin.licence}
    draft["id"] = fields.take("id", card_map.id)
    for key in CARD_KEYS[1:]:
        text = fields.take(key, card_map.slots(key))
        if text is not None and (value := value_of(key, text, card_map)) is not None:
            draft[key] = value
        elif text is not None:
            account.unknown[key][text] += 1
            if key == "language" and not origin.language:
                draft[key] = text  # refused with the rest of the card: nobody speaks it here
            fields.forget(key)
    if card_map.tells_need and "situation" in draft:
        draft["situation"], told = parted(draft["situation"], card_map.tells_need)
        draft["need"] = "\n".join(filter(None, [draft.get("need"), told])) or None
    if origin.language:
        draft["language"] = origin.language
    elif "language" not in draft:
        draft["language"] = language_of(f"{draft.get('profile', '')} {draft.get('situation', '')}")
    if notes := fields.notes():
        draft["notes"] = notes
    return draft


def parted(situation: str, mark: str) -> tuple[str, str]:
    """A situation without the lines that tell of the hidden need, and those lines.

    They are all lines with ``mark``, and whatever follows the first of them in the second half: stories close with how
    the person takes what fits their hidden need. A client that speaks must not be told; one that feels is.
    """
    lines = situation.split("\n")
    marked = [number for number, line in enumerate(lines) if mark in line]
    end = next((number for number in marked if 2 * number >= len(lines)), len(lines))
    kept = [line for number, line in enumerate(lines[:end]) if number not in marked]
    told = [line for number, line in enumerate(lines) if number in marked or number >= end]
    return "\n".join(kept).strip(), "\n".join(told).strip()


def value_of(key: str, text: str, card_map: CardMap) -> Any:
    """The value of a card's ``key`` that a text stands for, or None when it stands for none."""
    if key == "start_emotion":
        try:
            return round(float(text))
        except (ValueError, OverflowError):
            return None
    if key not in VALUES:
        return text
    named = card_map.values.get(key, {})
    value = named.get(text) or named.get(text.casefold()) or folded(text)
    return value if value in VALUES[key] else None


def language_of(text: str) -> Language:
    """Chinese where a fifth of the letters are Han characters, else English: no other language is told apart."""
    letters = [letter for letter in text if letter.isalpha()]
    hanzi = sum("\u4e00" <= letter <= "\u9fff" for letter in letters)
    return "zh" if hanzi > HANZI_SHARE * len(letters) else "en"


def _prefix(origin: Origin, file: str) -> str:
    """What the ids of an import share: the kind's name; a mere table's file says more than its kind."""
    is_table = origin.kind in load_map("table").kinds
    return slug(Path(file.removeprefix("hf:")).name.split(".")[0] if is_table else Path(origin.kind).stem)


def _stem(draft: dict[str, Any], row: Row, prefix: str) -> str:
    """The id but for what tells rows of the same name apart. A row without a name is named by its content."""
    own = slug(draft["id"] or "") or _row_hash(row)[:12]
    return "-".join(part for part in (draft["language"], prefix, own) if part)


def _row_hash(row: Row) -> str:
    """By content alone, so that the row's place in the file decides nothing."""
    return content_hash({name: plain(value) for name, value in row.data.items()})


def slug(text: str) -> str:
    """Lower-case letters and digits of ASCII, hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")


def _numbered(stem: str) -> Iterable[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def _check_columns(rows: Sequence[Row], card_map: CardMap, overrides: Sequence[str], file: str) -> None:
    """Columns that the user names have to exist: a misspelt one would be missed in silence."""
    found = [Fields(row.data, card_map) for row in rows] if overrides else []
    for override in overrides:
        for name in override.partition("=")[2].split("+"):
            if not any(fields.known(name) for fields in found):
                have = sorted({spelt for fields in found for spelt in fields.names.values()})
                raise InputError(f"--map {override}: {file} has no column {name.strip()!r}; it has {', '.join(have)}")


class _Account:
    """What became of the fields, counted over the rows."""

    def __init__(self) -> None:
        self.unknown: dict[str, Counter[str]] = defaultdict(Counter)
        self.rejected: list[Rejected] = []
        self._names: dict[str, str] = {}
        self._becomes: dict[str, set[str]] = defaultdict(set)
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)

    def count(self, fields: Fields) -> None:
        for key, name in fields.names.items():
            self._names.setdefault(key, name)
            if fields.text(key) is None:
                continue
            becomes, left_out = fields.becomes.get(key, set()), fields.left_out(key)
            self._becomes[key] |= becomes
            self._counts[key]["filled"] += 1
            self._counts[key]["mapped"] += bool(becomes)
            self._counts[key]["left_out"] += left_out
            self._counts[key]["noted"] += not becomes and not left_out

    def fields(self, rows: int) -> dict[str, FieldUse]:
        uses = {}
        for key, name in self._names.items():
            count = self._counts[key]
            becomes = tuple(known for known in CARD_KEYS if known in self._becomes[key])
            uses[name] = FieldUse(
                becomes=becomes,
                mapped=count["mapped"],
                noted=count["noted"],
                left_out=count["left_out"],
                missing=rows - count["filled"],
            )
        return uses
