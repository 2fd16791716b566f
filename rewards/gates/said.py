"""Reading a reply for the gates: plain sentences, the client's words in quotes blanked, and is it in the language."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.cards import Language
from envs.perception.lexicon import load_lexicon
from envs.perception.text import HAN, READ_CHARS, TOKEN, clean, read
from envs.trajectory import Message
from rewards.gates.patterns import Patterns, Said

MAX_CHARS = READ_CHARS  # a longer message gets no verdict: a part that nobody read must not pass
SHOWN = 200  # characters of evidence kept
# Patterns cost up to the square of a sentence's length, so one without an end is read in pieces that overlap.
PIECE, OVERLAP = 360, 120  # characters
# Shares below which a reply isn't in its language. Short replies have few function words by chance.
LETTERS_FROM, FUNCTION_SHARE, WORDS_FROM = 0.5, 0.12, 6
TRADITIONAL_FROM = 0.06
_HAN = re.compile(f"[{HAN}]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
_QUOTED = re.compile(r'"[^"\n]{1,400}"|「[^」]{1,400}」|『[^』]{1,400}』')
_DRAFT_REACH = 60  # characters in front of a quote in which its introduction stands


def listen(messages: Sequence[Message], position: int, patterns: Patterns) -> Said:
    """Read the reply at ``position`` of ``messages`` with what was said before it."""
    reply = messages[position].text[:MAX_CHARS]
    before = messages[:position]
    client = "\n".join(plain(message.text) for message in before if message.speaker == "client")
    heard: list[str] = []
    for message in reversed(before):
        if message.speaker == "supporter":
            break
        heard.insert(0, plain(message.text))
    cleaned = "\n".join(clean(part) for part in slices(reply))
    lexicon = load_lexicon(patterns.language)
    read_sentences = [
        piece
        for part in slices(_blank_quotes(cleaned, client, patterns))
        for sentence in read(part, lexicon).sentences
        for piece in _pieces(sentence.plain, sentence.text)
    ]
    return Said(
        sentences=tuple(plain for plain, _ in read_sentences),
        shown=tuple(text[:SHOWN] for _, text in read_sentences),
        raw=_blank_quotes(cleaned, client, None).lower(),
        heard="\n".join(heard),
        client=client,
        earlier="\n".join(plain(message.text) for message in before if message.speaker == "supporter"),
    )


def _pieces(plain: str, text: str) -> list[tuple[str, str]]:
    """A sentence as (plain, as said); a very long one in pieces of whole words, shown as said where the two align."""
    if len(plain) <= PIECE:
        return [(plain, text)]
    shown = text if len(text) == len(plain) else plain
    pieces, start = [], 0
    while start < len(plain):
        end = start + PIECE
        if end < len(plain) and (space := plain.rfind(" ", start + 2 * OVERLAP, end)) > 0:
            end = space
        pieces.append((plain[start:end].strip(), shown[start:end].strip()))
        if end >= len(plain):
            break
        space = plain.find(" ", end - OVERLAP, end)
        start = space + 1 if space >= 0 else end - OVERLAP
    return pieces


def slices(text: str) -> list[str]:
    """``text`` in pieces that the reader takes whole."""
    return [text[start : start + READ_CHARS] for start in range(0, len(text), READ_CHARS)]


def plain(text: str) -> str:
    """A message in lower case and plain forms, with single spaces."""
    return " ".join(" ".join(clean(part) for part in slices(text[:MAX_CHARS])).lower().split())


def _blank_quotes(text: str, client: str, patterns: Patterns | None) -> str:
    """``text`` without quotes of what the client said; with ``patterns``, also without words drafted for somebody."""
    said = _letters(client)

    def blank(match: re.Match[str]) -> str:
        introduction = text[max(0, match.start() - _DRAFT_REACH) : match.start()].lower()
        drafted = patterns is not None and patterns.has("drafted", introduction)
        words = _letters(match.group())
        return '" "' if drafted or (words and words in said) else match.group()

    return _QUOTED.sub(blank, text)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def in_language(text: str, patterns: Patterns) -> bool:
    """Whether ``text`` is mostly in the language of ``patterns``. Text without letters is in every language."""
    text = clean(text)
    letters = [letter for letter in text if letter.isalpha()]
    if len(letters) < 2:
        return True
    return _is_english(text, letters) if patterns.language == "en" else _is_chinese(text, letters, patterns)


def _is_english(text: str, letters: list[str]) -> bool:
    latin = sum(letter < "\u0250" for letter in letters)
    if latin < LETTERS_FROM * len(letters):
        return False
    lexicon = load_lexicon("en")
    words = TOKEN.findall(text.lower())
    foreign = sum(word in lexicon.foreign for word in words)
    function = sum(word.removesuffix("'s") in lexicon.function for word in words)
    if foreign > function:
        return False
    return len(words) < WORDS_FROM or function >= FUNCTION_SHARE * len(words)


def _is_chinese(text: str, letters: list[str], patterns: Patterns) -> bool:
    han, words = len(_HAN.findall(text)), len(_LATIN_WORD.findall(text))
    others = sum(not _HAN.match(letter) and letter > "\u024f" for letter in letters)
    if han < LETTERS_FROM * (han + 2 * words + others) or _KANA.search(text):
        return False
    return sum(letter in patterns.traditional for letter in letters) < max(2, TRADITIONAL_FROM * han)


def language_of(messages: Sequence[Message]) -> Language:
    """Chinese where the client's words are mostly Han characters, else English."""
    text = "".join(message.text for message in messages if message.speaker == "client")
    return "zh" if 2 * len(_HAN.findall(text)) > sum(letter.isalpha() for letter in text) else "en"
