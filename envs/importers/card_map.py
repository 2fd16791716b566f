"""Card maps: which fields of a collection become which key of a card, as data in ``configs/importers/*.yaml``.

A key is filled from slots. A slot names fields that may stand for the same thing; the first that holds something is
taken. Several filled slots are joined, each under its label. Names are compared without case, spaces for underscores;
``profile.age`` is a field within a field, ``messages.first_user`` the first thing the user says in a list of messages,
and ``base.problem`` a labelled part of a text, where the map lists the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from envs.errors import InputError, describe_validation

MAPS_DIR = Path(__file__).resolve().parents[2] / "configs" / "importers"
JOIN = "+"


def folded(name: str) -> str:
    """A field's name as names are compared."""
    return name.strip().casefold().replace(" ", "_")


class Slot(BaseModel):
    """Fields of which the first that holds something is taken, and the label under which it stands beside others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = None
    fields: tuple[str, ...] = Field(min_length=1)


Slots = tuple[Slot, ...]


def _slots(given: Any) -> Any:
    """``name``, or a list whose items are ``name``, ``[name, other name]`` or ``{label: name or names}``."""
    if isinstance(given, tuple):
        return given
    slots = []
    for item in [given] if isinstance(given, str) else given:
        label, fields = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (None, item)
        slots.append({"label": label, "fields": [fields] if isinstance(fields, str) else fields})
    return slots


class CardMap(BaseModel):
    """What becomes of a collection's fields. Fields that are named nowhere are kept in the card's notes.

    ``tells_need``: words that mark what of a situation gives the hidden need away; see ``convert.parted``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[str, ...] = Field(min_length=1)
    id: Slots = ()
    language: Slots = ()
    profile: Slots = ()
    situation: Slots = ()
    opening: Slots = ()
    hidden_need: Slots = ()
    need: Slots = ()
    temperament: Slots = ()
    start_emotion: Slots = ()
    speech: Slots = ()
    risk: Slots = ()
    tells_need: str | None = None
    leave_out: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    values: dict[str, dict[str, str]] = Field(default_factory=dict)

    @field_validator(
        "id", "language", "profile", "situation", "opening", "hidden_need", "need", "temperament", "start_emotion",
        "speech", "risk", mode="before",
    )  # fmt: skip
    @classmethod
    def _read_slots(cls, given: Any) -> Any:
        return _slots(given)

    def slots(self, key: str) -> Slots:
        """The slots of a card's key."""
        return getattr(self, key)


CARD_KEYS = tuple(name for name, field in CardMap.model_fields.items() if field.annotation == Slots)


def load_map(kind: str, overrides: Sequence[str] = ()) -> CardMap:
    """The map of a kind, or at a path, with ``key=column+column`` laid over it.

    Raises InputError that names the kinds, or the key that is wrong.
    """
    path = Path(kind)
    if path.suffix not in {".yaml", ".yml"}:
        maps = _known()
        if kind not in maps:
            close = get_close_matches(kind, maps, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"{kind}: there is no such kind of cards; {hint}known: {', '.join(maps)}, or your own map.yaml"
            )
        found = maps[kind]
    else:
        found = _load(path)
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, columns = override.partition("=")
        names = [name.strip() for name in columns.split(JOIN) if name.strip()]
        if not equals or not names or key not in (*CARD_KEYS, "leave_out"):
            raise InputError(
                f"--map {override}: write key=column or key=column{JOIN}column; keys: {', '.join(CARD_KEYS)}, leave_out"
            )
        labelled = len(names) > 1 and key != "id"
        slots = tuple(Slot(label=name if labelled else None, fields=(name,)) for name in names)
        changes[key] = tuple(names) if key == "leave_out" else slots
    return found.model_copy(update=changes)


@cache
def _known() -> dict[str, CardMap]:
    """The maps that come with attune, by the names of their kinds."""
    return {name: found for found in map(_load, sorted(MAPS_DIR.glob("*.yaml"))) for name in found.kinds}


def _load(path: Path) -> CardMap:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return CardMap.model_validate(data)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such map; see configs/importers for examples") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: can't be read as YAML: {error}") from error
    except ValidationError as error:
        raise InputError(describe_validation(error, str(path))) from error
