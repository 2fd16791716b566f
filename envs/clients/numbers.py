"""Numbers taken out of a client's thoughts before they reach the call that speaks, which may not know the emotion.

Every number in digits goes, of any script. The emotion spelled out goes too, from eleven on: smaller number words are
everyday words ("one of them"), and no sentence would survive without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

GONE = "…"
TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HAN = "零一二三四五六七八九"
SPELLED_FROM = 11


def without_numbers(text: str, emotions: Iterable[float]) -> str:
    """``text`` with every number in digits, and each of ``emotions`` spelled out in English or Chinese, left out."""
    marked = "".join("0" if character.isdigit() else character for character in text)
    text = re.sub(r"[+\-−－＋±]?0(?:[0.,]*0)?", GONE, marked)
    for whole in {round(emotion) for emotion in emotions if round(emotion) >= SPELLED_FROM}:
        english = re.escape(spelled(whole)).replace(r"\-", r"[\s\-]")
        text = re.sub(rf"\b{english}\b", GONE, text, flags=re.IGNORECASE)
        text = text.replace(spelled_han(whole), GONE)
    return text


def spelled(number: int) -> str:
    """``number`` (11 to 100) in English words."""
    if number == 100:
        return "hundred"
    if number < 20:
        return TEENS[number - SPELLED_FROM]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones - 1]}" if ones else "")


def spelled_han(number: int) -> str:
    """``number`` (11 to 100) in Chinese characters."""
    if number == 100:
        return "一百"
    tens, ones = divmod(number, 10)
    return (HAN[tens] if tens > 1 else "") + "十" + (HAN[ones] if ones else "")
