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
_ANYWHERE = ("markup", "debris")  # these patterns know no word edges
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
    empty: frozenset[str]
    generic_stems: frozenset[str]
    single: frozenset[str]
    foreign: frozenset[str]
    irregular: dict[str, str]
    synonyms: dict[str, str]
    turned: dict[str, str]
    doubles: frozenset[str]
    letters: frozenset[str]
    opening: frozenset[str]
    implied: dict[str, frozenset[str]]
    unlikely_pairs: frozenset[tuple[str, str]]
    rules: tuple[Rule, ...]
    named: dict[str, re.Pattern[str]]


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """A light English stemmer: plurals, -ing, -ed, -ly, doubled consonants, final e. "stopped" and "stops" meet."""
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-2] if word.endswith(("sses", "shes", "ches", "xes")) else word[:-1]
    for ending in ("ingly", "edly", "ing", "ed", "ly"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and re.search(r"[aeiouy]", root):
            word = root[:-1] if len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz" else root
            break
    if word.endswith("ied") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


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
    lists = {name: _split(words) for name, words in data["lists"].items()}
    word_edge = language != "zh"
    generic = frozenset(lists["generic"])
    synonyms = {stem(word): stem(group[0]) for group in map(_split, data.get("synonyms", [])) for word in group}

    def canon(word: str) -> str:
        return synonyms.get(stem(word), stem(word))

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
        empty=generic.union(*(lists[name] for name in data["function_lists"] if name not in data["counted_lists"])),
        generic_stems=frozenset(map(stem, generic)),
        single=frozenset(lists.get("single", [])),
        foreign=frozenset(lists.get("foreign", [])),
        irregular=dict(pair.split("=") for pair in _split(data.get("irregular", ""))),
        synonyms=synonyms,
        turned=dict(pair.split("=") for pair in _split(data["turned"])),
        doubles=frozenset(lists["doubles"]),
        letters=_letters(language),
        opening=frozenset(word for name in data.get("opening_lists", []) for word in lists[name]),
        implied={canon(word): frozenset(map(canon, _split(words))) for word, words in data.get("implied", {}).items()},
        unlikely_pairs=frozenset(
            (one, other) for one, row in data.get("unlikely_pairs", {}).items() for other in row.split()
        ),
        rules=rules,
        named={
            name: _pattern(patterns, lists, word_edge and name not in _ANYWHERE)
            for name, patterns in data["named"].items()
        },
    )


def _letters(language: Language) -> frozenset[str]:
    """The letter triples of the language's words, "^" and "$" for their edges; none where letters don't tell."""
    if language == "zh":
        return frozenset()
    path = PERCEPTION_DIR / f"letters-{language}.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(triple for line in lines if not line.startswith("#") for triple in line.split())


def _split(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _expand(pattern: str, lists: dict[str, list[str]]) -> str:
    return _NAME.sub(lambda found: f"(?:{'|'.join(lists[found[1]])})", pattern)


def _pattern(patterns: list[str], lists: dict[str, list[str]], word_edge: bool) -> re.Pattern[str]:
    joined = "|".join(_expand(pattern, lists) for pattern in patterns)
    return re.compile(rf"(?:(?<![\w'])|(?=[^\w']))(?:{joined})(?:(?!\w|-\w)|(?<=\s))" if word_edge else joined)
