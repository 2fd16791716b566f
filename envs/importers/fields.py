"""The fields of one row, by names that a card map can use, and the account of what becomes of each."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from envs.importers.card_map import CardMap, Slots, folded

FIRST_USER = "first_user"
UNNAMED = "(unnamed)"


def plain(value: Any) -> str | None:
    """A value as text; None where it says nothing. Lists of plain things are joined, other structures are JSON."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        # Half a surrogate pair can stand in JSON and nowhere else.
        return value.encode("utf-8", "replace").decode("utf-8").strip() or None
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        parts = [plain(part) for part in value]
        if not any(isinstance(part, dict | list | tuple) for part in value):
            return "; ".join(part for part in parts if part) or None
    return plain(json.dumps(value, ensure_ascii=False, default=str)) if value else None


class Fields:
    """One row's fields. ``becomes`` collects, for each field, the keys that were made of it."""

    def __init__(self, row: dict[str, Any], card_map: CardMap) -> None:
        self._left_out = {folded(name) for name in card_map.leave_out}
        self._names: dict[str, str] = {}
        self._texts: dict[str, str | None] = {}
        self._parts: dict[str, tuple[str, str]] = {}
        self.becomes: dict[str, set[str]] = defaultdict(set)
        self._add("", row)
        for key, text in list(self._texts.items()):
            for label, part in _labelled(text or "", card_map.labels).items():
                self._parts[f"{key}.{folded(label)}"] = (key, part)

    def _add(self, prefix: str, row: dict[str, Any]) -> None:
        for name, value in row.items():
            full = f"{prefix}{plain(name) or UNNAMED}"
            key = folded(full)
            if isinstance(value, dict) and value and key not in self._left_out:
                self._add(f"{full}.", value)
                continue
            while key in self._names:  # "Age" beside "age": two fields, of which the map knows the first
                key, full = f"{key}'", f"{full}'"
            self._names[key] = full
            self._texts[key] = plain(value)
            if first := _first_user(value):
                self._parts[f"{key}.{FIRST_USER}"] = (key, first)

    def take(self, key: str, slots: Slots) -> str | None:
        """The text that ``slots`` give for a card's ``key``, or None when none of their fields holds anything."""
        found: list[tuple[str | None, str]] = []
        for slot in slots:
            for name in map(folded, slot.fields):
                root, text = self._parts.get(name, (name, self._texts.get(name)))
                if text:
                    self.becomes[root].add(key)
                    found.append((slot.label, text))
                    break
        if len(found) == 1:
            return found[0][1]
        return "\n".join(f"{label}: {text}" if label else text for label, text in found) or None

    def forget(self, key: str) -> None:
        """Take back that a field became ``key``: what it says could not be used, so that it is kept as a note."""
        for keys in self.becomes.values():
            keys.discard(key)

    @property
    def names(self) -> dict[str, str]:
        """Every field of the row as it is spelt there, by its folded name."""
        return self._names

    def known(self, name: str) -> bool:
        """Whether the row has such a field, filled or not."""
        return folded(name) in self._names or folded(name) in self._parts

    def text(self, key: str) -> str | None:
        """What the field with this folded name holds."""
        return self._texts.get(key)

    def left_out(self, key: str) -> bool:
        """Whether the map leaves out (the rest of) this field."""
        return key in self._left_out

    def notes(self) -> dict[str, str]:
        """What became nothing else and is not left out, by the source's own names."""
        kept = {key: text for key, text in self._texts.items() if text and not self.becomes.get(key)}
        return {self._names[key]: text for key, text in kept.items() if key not in self._left_out}


def _first_user(value: Any) -> str | None:
    """The first thing that the user says in a list of messages with ``role`` and ``content``."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return None
    for message in value:
        if isinstance(message, dict) and message.get("role") == "user":
            return plain(message.get("content"))
    return None


def _labelled(text: str, labels: Sequence[str]) -> dict[str, str]:
    """The labelled parts of a text, as in ``Age: 31`` or a list of such in one line; each label counts once."""
    if not labels:
        return {}
    names = "|".join(map(re.escape, labels))
    marks = re.finditer(rf"(?:^|(?<=[\n,;，；。.]))[\s*\-]*({names})\s*[:：]", text, re.IGNORECASE)
    found, seen = [], set()
    for mark in marks:
        if (label := folded(mark[1])) not in seen:
            seen.add(label)
            found.append((mark[1], mark.start(), mark.end()))
    if not found:
        return {}
    ends = [start for _, start, _ in found[1:]] + [len(text)]
    parts = {name: text[begin:end].strip(" \n\t,;，；") for (name, _, begin), end in zip(found, ends, strict=True)}
    return {name: part for name, part in parts.items() if part}
