"""Word lists and patterns of one language, read from ``configs/perception/<language>.yaml`` and compiled once.

In the file, a word list is one string with commas; ``<name>`` inside a pattern stands for "any of the list ``name``".
English patterns match from word start to word end in the lower-cased sentence; Chinese ones match anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from envs.cards import Language
from envs.errors import InputError

PERCEPTION_DIR = Path(__file__).resolve().parents[2] / "configs" / "perception"
_NAME = re.compile(r"<([a-z_]+)>")


@dataclass(frozen=True, eq=False)
class Rule:
    """Gives ``labels`` to a sentence in which ``pattern`` matches, unless ``unless`` matches it anywhere, or ``before``
    matches what stands in front of the find. ``uptake``: it counts only where the sentence takes up the client's words.
    """

    labels: tuple[str, ...]
    pattern: re.Pattern[str]
    unless: re.Pattern[str] | None
    before: re.Pattern[str] | None
    uptake: bool

    def find(self, plain: str) -> re.Match[str] | None:
        """The first place in the lower-cased sentence where the rule holds."""
        if self.unless is not None and self.unless.search(plain):
            return None
        for match in self.pattern.finditer(plain):
            if self.before is None or not self.before.search(plain[: match.start()]):
                return match
        return None


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Everything that is known about a language. Compared and hashed by identity: there is one per language."""

    language: Language
    function: frozenset[str]
    generic: frozenset[str]
    generic_stems: frozenset[str]
    single: frozenset[str]
    irregular: dict[str, str]
    synonyms: dict[str, str]
    turned: dict[str, str]
    doubles: frozenset[str]
    common_pairs: frozenset[str]
    rules: tuple[Rule, ...]
    named: dict[str, re.Pattern[str]]


@lru_cache(maxsize=4)
def load_lexicon(language: Language) -> Lexicon:
    """The lexicon of ``language``. Raises InputError naming the file and key where it can't be read or compiled."""
    path = PERCEPTION_DIR / f"{language}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _compile(language, data)
    except (OSError, yaml.YAMLError, KeyError, TypeError, re.error) as error:
        raise InputError(f"{path}: can't be used: {error!r}; restore the file or mend that key") from error


def _compile(language: Language, data: dict[str, Any]) -> Lexicon:
    from envs.perception.text import stem  # text.py needs the type Lexicon; only this function needs the stemmer

    lists = {name: _split(words) for name, words in data["lists"].items()}
    word_edge = language != "zh"
    generic = frozenset(lists["generic"])
    synonyms = {stem(word): stem(group[0]) for group in map(_split, data.get("synonyms", [])) for word in group}
    rules = tuple(
        Rule(
            labels=tuple(_split(rule["labels"])),
            pattern=_pattern(rule["any"], lists, word_edge),
            unless=_pattern(rule["unless"], lists, word_edge) if "unless" in rule else None,
            before=re.compile(_expand(rule["before"], lists)) if "before" in rule else None,
            uptake=bool(rule.get("uptake", False)),
        )
        for rule in data["rules"]
    )
    return Lexicon(
        language=language,
        function=frozenset(word for name in data["function_lists"] for word in lists[name]),
        generic=generic,
        generic_stems=frozenset(map(stem, generic)),
        single=frozenset(lists.get("single", [])),
        irregular=dict(pair.split("=") for pair in _split(data.get("irregular", ""))),
        synonyms=synonyms,
        turned=dict(pair.split("=") for pair in _split(data["turned"])),
        doubles=frozenset(lists["doubles"]),
        common_pairs=frozenset(data.get("common_pairs", "").split()),
        rules=rules,
        named={name: _pattern(patterns, lists, word_edge) for name, patterns in data["named"].items()},
    )


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _expand(pattern: str, lists: dict[str, list[str]]) -> str:
    return _NAME.sub(lambda found: f"(?:{'|'.join(lists[found[1]])})", pattern)


def _pattern(patterns: list[str], lists: dict[str, list[str]], word_edge: bool) -> re.Pattern[str]:
    joined = "|".join(_expand(pattern, lists) for pattern in patterns)
    return re.compile(rf"(?<![\w'])(?:{joined})(?!\w)" if word_edge else joined)
