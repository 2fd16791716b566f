"""What a client played by a language model may not say, checked on the finished message.

A message that breaks a rule is asked for again. The causes are in fixed words, so that they can stand in a prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

from envs.cards import Language

RUN = {"en": 6, "zh": 8}  # words (characters in Chinese) in a row taken from the need's own text that reveal it


def violations(
    message: str,
    language: Language,
    *,
    own: Sequence[str],
    emotions: Sequence[float],
    known: str,
    need: str | None,
    questions: int,
    longest: int,
) -> list[str]:
    """What is wrong with ``message``, in fixed words; nothing: [].

    ``own``: the client's earlier messages. ``emotions``: the numbers that may not be told, but where they stand in
    ``known`` (persona and talk) anyway. ``need``: the hidden need's text, None where it may be said. ``questions`` and
    ``longest`` (characters): the most that one message may have.
    """
    found = []
    if not _tokens(message, language):
        found.append("the message said nothing")
    if len(message) > longest:
        found.append(f"the message was longer than {longest} characters")
    if _tokens(message, language) in [_tokens(text, language) for text in own]:
        found.append("the message repeated an earlier one")
    if len(re.findall(r"[?？؟]+", message)) > questions:
        found.append(f"the message asked more than {questions} questions")
    if set(_numbers(message)) & {f"{emotion:g}" for emotion in emotions} - set(_numbers(known)):
        found.append("the message told a number that the client does not know")
    if need is not None and _reveals(message, need, language):
        found.append("the message told the hidden intention outright")
    return found


def _reveals(message: str, need: str, language: Language) -> bool:
    said, hidden = _tokens(message, language), _tokens(need, language)
    run = SequenceMatcher(None, said, hidden, autojunk=False).find_longest_match().size
    return bool(hidden) and run >= min(len(hidden), RUN[language])


def _tokens(text: str, language: Language) -> list[str]:
    """Lower-case words, in Chinese characters, without punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"\w" if language == "zh" else r"\w+(?:['’]\w+)*", plain)


def _numbers(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text)
    return [f"{float(number):g}" for number in re.findall(r"\d+(?:\.\d+)?", plain)]
