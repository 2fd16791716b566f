"""Sentences, words and content terms of a text, for English and Chinese alike.

A token is an English word (lower case) or one Han character, so that echo, repetition and broken-language checks are
written once. What a token means is language-bound: an English content term is a stem, a Chinese one is a run of
characters that share two-character pairs with what was said before; no dictionary or segmenter is involved.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from envs.perception.lexicon import Lexicon, stem

READ_CHARS = 6000  # a reply is read up to here and only counted beyond; a spoken reply has some hundreds of characters
HAN = r"\u3400-\u4dbf\u4e00-\u9fff"
HAN_CHAR = re.compile(f"[{HAN}]")
_HAN_RUN = re.compile(f"[{HAN}]+")
TOKEN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:['\-][^\W_{HAN}]+)*")
_PIECE = re.compile(
    r"[^\n]{1,400}?(?:(?<!\bmr)(?<!\bmrs)(?<!\bms)(?<!\bdr)[.!?…]+[\"')\]”’]*(?=\s|$)|[。！？；;!?…]+[\"')\]”’」』]*|\n|$)"
    r"|[^\n]{400}",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufe0e\ufe0f]")
_PLAIN = str.maketrans(
    {
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "\u00a0": " ",
        "\t": " ",
        "–": "-",
        "—": " - ",
        "，": ",",
        "：": ":",
        "；": ";",
        "？": "?",
        "！": "!",
        "（": "(",
        "）": ")",
    }
)
_QUESTION_MARK = re.compile(r"[?？]")


@dataclass(frozen=True)
class Sentence:
    """One sentence. ``tokens`` and ``stems`` (n,) run in step; a stem is "" where the token carries no content."""

    text: str
    plain: str
    tokens: tuple[str, ...]
    stems: tuple[str, ...]

    @property
    def asks(self) -> bool:
        """Ends with a question mark."""
        return bool(_QUESTION_MARK.search(self.text[-4:]))


@dataclass(frozen=True)
class Reading:
    """A text as read: cleaned, cut into sentences, with the content terms said in it."""

    text: str
    sentences: tuple[Sentence, ...]
    terms: frozenset[str]

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens of the text, in order."""
        return tuple(token for sentence in self.sentences for token in sentence.tokens)


def clean(text: str) -> str:
    """The part of ``text`` that is read, in plain forms: no invisible characters, no lone surrogates."""
    head = text[:READ_CHARS].encode("utf-8", "replace").decode("utf-8")
    head = unicodedata.normalize("NFKC", head.translate(_PLAIN)).translate(_PLAIN)
    return _INVISIBLE.sub("", head.replace("\r", "\n")).strip()[:READ_CHARS]


def count_words(text: str) -> int:
    """Words of the whole text: runs of letters or digits, and Han characters / 1.5 rounded (a word's mean length)."""
    others, runs = _HAN_RUN.subn(" ", text)
    han = len(text) - len(others) + runs
    return len(TOKEN.findall(others)) + round(han / 1.5)


@lru_cache(maxsize=1024)
def read(text: str, lexicon: Lexicon) -> Reading:
    """Read ``text`` with the words of ``lexicon``. Cached: a dialogue's earlier messages come again every turn."""
    cleaned = clean(text)
    sentences = tuple(
        _sentence(piece, lexicon) for match in _PIECE.finditer(cleaned) if (piece := match.group().strip())
    )
    if lexicon.language == "zh":
        terms = frozenset(pair for s in sentences for pair in _han_terms(s.tokens, lexicon))
    else:
        terms = frozenset(stem for s in sentences for stem in s.stems if stem)
    return Reading(text=cleaned, sentences=sentences, terms=terms)


def _sentence(piece: str, lexicon: Lexicon) -> Sentence:
    plain = " ".join(piece.lower().split())
    tokens = tuple(TOKEN.findall(plain))
    if lexicon.language == "zh":
        stems = tuple("" if token in lexicon.empty else token for token in tokens)
    else:
        stems = tuple(content_stem(token, lexicon) for token in tokens)
    return Sentence(text=piece, plain=plain, tokens=tokens, stems=stems)


def content_stem(word: str, lexicon: Lexicon) -> str:
    """The stem under which an English word counts as content, or "" for function words and too general ones."""
    word = word.removesuffix("'s").removesuffix("'")
    if word in lexicon.empty or (len(word) < 3 and not word.isdigit()):
        return ""
    root = stem(lexicon.irregular.get(word, word))
    return "" if root in lexicon.generic_stems else lexicon.synonyms.get(root, root)


def _han_terms(tokens: tuple[str, ...], lexicon: Lexicon) -> list[str]:
    """Content pairs of neighbouring Han characters, the single characters that carry content alone, and Latin words."""
    pairs = [
        a + b
        for a, b in pairwise(tokens)
        if a not in lexicon.empty and b not in lexicon.empty and a + b not in lexicon.empty
    ]
    return [p for p in pairs if len(p) == 2] + [t for t in tokens if t in lexicon.single or len(t) > 2]


def spans_taken_up(sentence: Sentence, terms: frozenset[str], lexicon: Lexicon) -> list[tuple[int, int, str]]:
    """Where the sentence uses ``terms``: (start, end, what) over token positions, in order and without overlap."""
    if lexicon.language != "zh":
        return [(i, i + 1, sentence.tokens[i]) for i, root in enumerate(sentence.stems) if root and root in terms]
    tokens, covered = sentence.tokens, [token in terms for token in sentence.tokens]
    joined = [a + b in terms for a, b in pairwise(tokens)]
    for i, hit in enumerate(joined):
        if hit:
            covered[i] = covered[i + 1] = True
    spans, i = [], 0
    while i < len(tokens):
        end = i + 1
        if covered[i]:
            while end < len(tokens) and joined[end - 1]:
                end += 1
            spans.append((i, end, "".join(tokens[i:end])))
        i = end
    return spans
