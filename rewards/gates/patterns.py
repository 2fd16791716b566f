"""The patterns of the gates for one language, read from ``configs/gates/<language>.yaml`` and compiled once.

In the file, a word list is one string with commas and a pattern is one line of a block; ``<name>`` inside a pattern
stands for "any of the list ``name``"; a line that begins with "# " is a comment.
English patterns match from word start to word end in lower-case text; Chinese ones match anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from envs.cards import Language
from envs.errors import InputError
from rewards.gates.gate import GATES, Gate

PATTERNS_DIR = Path(__file__).resolve().parents[2] / "configs" / "gates"
_NAME = re.compile(r"(?<!\?P)<([a-z_]+)>")
_ANYWHERE = r".*\b"  # a search looks everywhere anyway, and this in front makes it quadratic in the length
_CONDITIONS = ("unless", "unless_reply", "heard", "unless_heard", "earlier")
_KEYS = {"cause", "any", "raw", *_CONDITIONS}


@dataclass(frozen=True)
class Said:
    """One reply and what it answers, ready to be matched: lower case, plain forms, client's words in quotes blanked.

    ``sentences`` (n,) and ``shown`` (n,) run in step; ``shown`` is the text as said. ``raw`` is the reply with its
    quotes. ``heard`` is what the client said since the supporter's last message, ``client`` all that it said until
    then, and ``earlier`` the supporter's earlier messages.
    """

    sentences: tuple[str, ...]
    shown: tuple[str, ...]
    raw: str
    heard: str
    client: str
    earlier: str

    @property
    def reply(self) -> str:
        """All sentences in one string."""
        return " ".join(self.sentences)


@dataclass(frozen=True, eq=False)
class Rule:
    """Closes a gate for ``cause`` where ``pattern`` matches a sentence and all conditions hold.

    ``raw``: it is matched over the reply with its markup. ``unless`` looks at the same sentence, ``unless_reply`` at
    the reply, ``heard`` and ``unless_heard`` at what the client just said, ``earlier`` at the supporter's earlier
    messages.
    """

    cause: str
    pattern: re.Pattern[str]
    raw: bool
    unless: re.Pattern[str] | None
    unless_reply: re.Pattern[str] | None
    heard: re.Pattern[str] | None
    unless_heard: re.Pattern[str] | None
    earlier: re.Pattern[str] | None

    def find(self, said: Said) -> str | None:
        """The text that the rule rests on, as it was said; None where the rule does not hold."""
        # The pattern first: it is read by the sentence, while the conditions run over whole messages.
        found = self._first(said)
        return found if found and self._allowed(said) else None

    def _first(self, said: Said) -> str | None:
        if self.raw:
            return self._in(said.raw, None)
        found = (self._in(plain, shown) for plain, shown in zip(said.sentences, said.shown, strict=True))
        return next((evidence for evidence in found if evidence), None)

    def _allowed(self, said: Said) -> bool:
        needed = (self.heard, said.heard), (self.earlier, said.earlier)
        barred = (self.unless_heard, said.heard), (self.unless_reply, said.reply)
        return all(pattern.search(text) for pattern, text in needed if pattern) and not any(
            pattern.search(text) for pattern, text in barred if pattern
        )

    def _in(self, text: str, shown: str | None) -> str | None:
        match = self.pattern.search(text)
        if match is None or (self.unless and self.unless.search(text)):
            return None
        return shown or match.group().strip()


@dataclass(frozen=True, eq=False)
class Patterns:
    """All rules of a language by gate, and its named patterns ("crisis.risk" and so on)."""

    language: Language
    rules: dict[Gate, tuple[Rule, ...]]
    named: dict[str, re.Pattern[str]]
    traditional: frozenset[str]

    def has(self, name: str, text: str) -> bool:
        """Whether the named pattern is in ``text``."""
        return bool(self.named[name].search(text))


@cache
def load_patterns(language: Language) -> Patterns:
    """The patterns of a language. Raises InputError naming the file and what is wrong in it."""
    path = PATTERNS_DIR / f"{language}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _patterns(language, data)
    except (OSError, yaml.YAMLError, re.error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the patterns of the gates can't be read: {error}; restore the file") from error


def _patterns(language: Language, data: dict[str, Any]) -> Patterns:
    lists = {
        name: "|".join(re.escape(word.strip()) for word in words.split(",")) for name, words in data["lists"].items()
    }
    edges = language == "en"
    rules: dict[Gate, tuple[Rule, ...]] = {}
    named = {name: compiled(patterns, lists, edges) for name, patterns in data["named"].items()}
    for gate in GATES:
        part = data["gates"][gate]
        rules[gate] = tuple(_rule(gate, rule, lists, edges) for rule in part.get("rules", []))
        for name, patterns in part.get("named", {}).items():
            named[f"{gate}.{name}"] = compiled(patterns, lists, edges)
    return Patterns(language, rules, named, frozenset(data.get("traditional", "")))


def _rule(gate: Gate, rule: dict[str, Any], lists: dict[str, str], edges: bool) -> Rule:
    if unknown := set(rule) - _KEYS:
        raise ValueError(f"{gate}: a rule has the unknown key {sorted(unknown)[0]!r}")
    raw = bool(rule.get("raw", False))
    conditions = {key: compiled(rule[key], lists, edges) if key in rule else None for key in _CONDITIONS}
    return Rule(
        cause=rule["cause"],
        pattern=compiled(rule["any"], lists, edges and not raw),
        raw=raw,
        **conditions,
    )


def compiled(patterns: str, lists: dict[str, str], edges: bool) -> re.Pattern[str]:
    """One pattern that matches where any line of ``patterns`` does; ``edges``: only from word start to word end."""
    lines = [line.strip() for line in patterns.splitlines() if line.strip() and not line.lstrip().startswith("# ")]
    lines = [line.removeprefix(_ANYWHERE) for line in lines]
    joined = "|".join(_NAME.sub(lambda found: f"(?:{lists[found[1]]})", line) for line in lines)
    return re.compile(rf"(?<!\w)(?:{joined})(?!\w)" if edges else joined)
