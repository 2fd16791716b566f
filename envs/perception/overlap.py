"""What a reply shares with what was said before: uptake of the client, echo of the client, repetition of oneself."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from envs.perception.lexicon import Lexicon
from envs.perception.percept import Heard
from envs.perception.text import TOKEN, Reading, Sentence, content_stem, read, spans_taken_up

EARLIER_WEIGHT = 0.5  # of a word from an earlier message; one from the last message weighs 1
FIRST_WORD, SECOND_WORD = 0.6, 0.4  # uptake for the first and the second specific word
ECHO_RUN = {"en": 4, "zh": 6}  # tokens in a row that make a copy
LONG_STRETCH = 2  # times ECHO_RUN: a stretch this long is a copy even inside a turned-around sentence
WHOLE_ECHO = 0.85  # share of the reply from which a turned-around sentence is a copy as well
ALIKE = 0.5  # likeness from which a sentence counts as one that was said before
UNLIKE_WEIGHT = 0.6  # of a likeness below that: all sentences of a language share something
SAME_FRAME = 0.8  # likeness from which a frame without its content words is the same frame
MIN_FRAME = 4  # function words that a frame must have
LIST_RUN = 4  # taken-up words in a row that are a list and no sentence
QUOTE = {"en": 6, "zh": 13}  # tokens from which a verbatim stretch is no longer a quote woven into one's own sentence
CUT = 4  # tokens from which a stretch that ends inside a phrase is a cut-off quotation
QUOTE_WEIGHT = 0.4  # of all words taken up in such long stretches together: less than "heard" needs
GUESS = 0.6  # of a taken-up word that a particular which the client never spoke of ("your brother", "the letter") costs
_QUOTE_MARKS = re.compile(r'["「」『』]')


def uptake(reading: Reading, grammatical: list[bool], heard: Heard, lexicon: Lexicon) -> tuple[float, tuple[str, ...]]:
    """Share in [0, 1] to which the reply takes up the client's words, and those words.

    Sentences that aren't ``grammatical`` and bare lists give nothing. One word of the last message gives 0.6, two 1.
    Words inside a long verbatim stretch are weak: anybody can copy. So is a hit among guesses: whoever names mother,
    house and letter to everybody is right now and then.
    """
    last = read(heard.client[-1], lexicon).terms
    earlier = frozenset(term for text in heard.client[:-1] for term in read(text, lexicon).terms) - last
    weights: dict[str, float] = {}
    words: list[str] = []
    quoted = False
    for sentence, sound, copied in zip(reading.sentences, grammatical, _copies(reading, heard, lexicon), strict=True):
        if not sound:
            continue
        long = {i for a, b in _stretches(copied) if _weak_quote(sentence, a, b, lexicon) for i in range(a, b)}
        spans = _not_listed(sentence, spans_taken_up(sentence, last | earlier, lexicon), lexicon)
        for start, end, what in spans:
            if start in long:
                quoted = True
                words.append(what)
                continue
            fresh = _key(sentence, start, end, lexicon)
            in_last = what in last or fresh in last or any(a + b in last for a, b in pairwise(what))
            weight = (1.0 if in_last else EARLIER_WEIGHT) * (2 if lexicon.language == "zh" and end - start >= 4 else 1)
            if weight > weights.get(fresh, 0.0):
                weights[fresh] = weight
                words.append(what)
    total = max(sum(weights.values()), QUOTE_WEIGHT if quoted else 0.0)
    total = max(0.0, total - GUESS * len(_guesses(reading, heard, lexicon)))
    share = FIRST_WORD * min(total, 1.0) + SECOND_WORD * min(max(total - 1.0, 0.0), 1.0)
    return round(min(share, 1.0), 3), tuple(dict.fromkeys(words))


def _weak_quote(sentence: Sentence, start: int, end: int, lexicon: Lexicon) -> bool:
    """A verbatim stretch that is long, or that was cut off before the phrase ended ("they gave me a")."""
    if lexicon.language == "zh" or end - start >= QUOTE["en"]:
        return end - start >= QUOTE[lexicon.language]
    return end - start >= CUT and sentence.tokens[end - 1] in lexicon.opening


def _guesses(reading: Reading, heard: Heard, lexicon: Lexicon) -> set[str]:
    """Everyday particulars that the reply takes for given and the client never spoke of."""
    found = {m.group() for s in reading.sentences for m in lexicon.named["particular"].finditer(s.plain)}
    if lexicon.language == "zh":
        said = "".join(heard.client)
        return {name for name in found if not set(name) & set(said) - {"你", "的", "家"}}
    terms = frozenset(term for text in heard.client for term in read(text, lexicon).terms)
    roots = {content_stem(name.split()[-1], lexicon) for name in found}
    return {root for root in roots if root not in terms and not lexicon.implied.get(root, frozenset()) & terms}


def _key(sentence: Sentence, start: int, end: int, lexicon: Lexicon) -> str:
    return "".join(sentence.tokens[start:end]) if lexicon.language == "zh" else sentence.stems[start]


def _not_listed(sentence: Sentence, spans: list[tuple[int, int, str]], lexicon: Lexicon) -> list[tuple[int, int, str]]:
    """The spans without those that merely stand in a row, or in an enumeration that is mostly not the client's."""
    kept, run = [], []
    for span in [*spans, (10**9, 10**9, "")]:
        if run and span[0] != run[-1][1]:
            listed = len(run) >= LIST_RUN or (len(run) == 3 and ", ".join(what for _, _, what in run) in sentence.plain)
            if not listed or lexicon.language == "zh":
                kept += run
            run = []
        run.append(span)
    items = sentence.plain.count(",") + sentence.plain.count(" or ") + sentence.plain.count("、")
    return [] if items >= 3 and len(kept) <= items / 2 else kept


def echo(reading: Reading, heard: Heard, lexicon: Lexicon) -> float:
    """Share of the reply's tokens that lie in verbatim runs of the client's text.

    So is a long quotation in quotation marks; a short one isn't. A stretch with "I" turned to "you" is a restatement
    and no echo, unless such stretches are nearly all of the reply or a single unturned stretch is long.
    """
    run = ECHO_RUN[heard.language]
    total = copied = turned_copied = 0
    grams = [_grams(text, run, lexicon) for text in heard.client]
    straight = frozenset().union(*(g[0] for g in grams))
    turned = frozenset().union(*(g[1] for g in grams))
    for sentence, quote in zip(reading.sentences, _copies(reading, heard, lexicon), strict=True):
        tokens, n = sentence.tokens, len(sentence.tokens)
        total += n
        same = _covered(tokens, straight, run, sentence.stems)
        flipped = _covered(tuple(lexicon.turned.get(t, t) for t in tokens), turned, run, sentence.stems)
        turned_copied += sum(flipped)
        for start, end in _stretches(quote):  # counted here, and not once more below
            long = end - start >= QUOTE[heard.language]
            if long or _QUOTE_MARKS.search(sentence.plain):
                copied += (end - start) * long
                flipped[start:end] = [False] * (end - start)
        for start, end in _stretches(flipped):
            inner = list(_stretches(same[start:end]))
            whole = inner == [(0, end - start)]
            copied += sum(b - a for a, b in inner if whole or b - a >= LONG_STRETCH * run)
    if not total:
        return 0.0
    return round(max(copied, turned_copied if turned_copied >= WHOLE_ECHO * total else 0) / total, 3)


@lru_cache(maxsize=512)
def _grams(text: str, size: int, lexicon: Lexicon) -> tuple[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]:
    """The token runs of ``size`` in ``text``: as said, and with the persons turned to one form."""
    straight, turned = set(), set()
    for sentence in read(text, lexicon).sentences:
        flipped = tuple(lexicon.turned.get(token, token) for token in sentence.tokens)
        for i in range(len(flipped) - size + 1):
            straight.add(sentence.tokens[i : i + size])
            turned.add(flipped[i : i + size])
    return frozenset(straight), frozenset(turned)


def _covered(
    tokens: tuple[str, ...], known: frozenset[tuple[str, ...]], size: int, stems: tuple[str, ...]
) -> list[bool]:
    """Which tokens lie in a known run. A run of function words alone ("I don't know what") is nobody's own."""
    covered = [False] * len(tokens)
    for i in range(len(tokens) - size + 1):
        if tokens[i : i + size] in known and any(stems[i : i + size]):
            covered[i : i + size] = [True] * size
    return covered


def _copies(reading: Reading, heard: Heard, lexicon: Lexicon) -> list[list[bool]]:
    """Which tokens of each sentence stand word for word in what the client said: in a run long enough to be a copy, or
    between quotation marks. A quotation may run over several sentences.
    """
    run = ECHO_RUN[heard.language]
    straight = frozenset().union(*(_grams(text, run, lexicon)[0] for text in heard.client))
    said = frozenset(token for text in heard.client for token in read(text, lexicon).tokens)
    copies, inside = [], False
    for sentence in reading.sentences:
        copied, at = _covered(sentence.tokens, straight, run, sentence.stems), 0
        for number, part in enumerate(_QUOTE_MARKS.split(sentence.plain)):
            inside = inside != (number > 0)
            end = at + len(TOKEN.findall(part))
            if inside:
                copied[at:end] = [c or sentence.tokens[i] in said for i, c in enumerate(copied[at:end], at)]
                if end - at > 1 and copied[end - 2]:  # the last word may be cut short
                    copied[end - 1] |= any(word.startswith(sentence.tokens[end - 1]) for word in said)
            at = end
        copies.append(copied)
    return copies


def _stretches(covered: list[bool]) -> list[tuple[int, int]]:
    stretches, start = [], None
    for i, hit in enumerate([*covered, False]):
        if hit and start is None:
            start = i
        elif not hit and start is not None:
            stretches.append((start, i))
            start = None
    return stretches


@dataclass(frozen=True)
class _Part:
    """A sentence as it is compared: ``masked`` without the client's words, ``frame`` without any content; ``weight``
    counts the tokens that are no copy of the client.
    """

    text: str
    masked: tuple[str, ...]
    frame: tuple[str, ...]
    weight: int


def _parts(reading: Reading, terms: frozenset[str], heard: Heard, lexicon: Lexicon) -> list[_Part]:
    """The sentences of a reply to compare. A copy that runs on past a full stop joins the sentences it lies in."""
    parts: list[_Part] = []
    runs_on = False
    for sentence, copied in zip(reading.sentences, _copies(reading, heard, lexicon), strict=True):
        masked, frame = _mask(sentence, terms, copied, lexicon), _frame(sentence, copied, lexicon)
        weight = len(sentence.tokens) - sum(copied)
        if runs_on and copied and copied[0]:
            last = parts.pop()
            text, weight = f"{last.text} {sentence.text}", last.weight + weight
            parts.append(_Part(text, last.masked + masked[1:], last.frame + frame[1:], weight))
        elif masked:
            parts.append(_Part(sentence.text, masked, frame, weight))
        runs_on = bool(copied) and copied[-1] and bool(parts)
    return [replace(part, frame=part.frame if _tells(part.frame) else ()) for part in parts]


def repetition(reading: Reading, heard: Heard, lexicon: Lexicon) -> tuple[float, str]:
    """Likeness in [0, 1] to the supporter's earlier replies, recent or old, and the earlier sentence it rests on.

    Each sentence is compared with every earlier sentence after the client's words are masked, and once more with all
    content masked, where only a near-identical frame counts: one frame with a new keyword is still the same sentence.
    What is copied from the client is masked as well, and weighs nothing: a frame around a new quote stays that frame.
    The reply's value is the mean over its sentences, weighted by length.
    """
    terms = frozenset(term for text in heard.client for term in read(text, lexicon).terms)
    earlier = [part for text in heard.supporter for part in _parts(read(text, lexicon), terms, heard, lexicon)]
    total = alike = best_share = 0.0
    best_text = ""
    for part in _parts(reading, terms, heard, lexicon):
        likeness, text = 0.0, ""
        for other in earlier:
            value = likeness_of(part.masked, other.masked)
            if part.frame and other.frame and value < SAME_FRAME:
                framed = likeness_of(part.frame, other.frame)
                value = framed if framed >= SAME_FRAME else value
            if value > likeness:
                likeness, text = value, other.text
        total += part.weight
        alike += part.weight * (likeness if likeness >= ALIKE else UNLIKE_WEIGHT * likeness)
        if likeness >= ALIKE and likeness * part.weight > best_share:
            best_text, best_share = text, likeness * part.weight
    return (round(alike / total, 3), best_text) if total else (0.0, "")


def _mask(sentence: Sentence, terms: frozenset[str], copied: list[bool], lexicon: Lexicon) -> tuple[str, ...]:
    """The sentence's tokens with what the client said, word by word or as a copy, replaced by "*"."""
    spans = {i for start, end, _ in spans_taken_up(sentence, terms, lexicon) for i in range(start, end)}
    return _starred(sentence.tokens, [i in spans or copy for i, copy in enumerate(copied)])


def _frame(sentence: Sentence, copied: list[bool], lexicon: Lexicon) -> tuple[str, ...]:
    """The sentence's tokens with all content replaced by "*"."""
    words = lexicon.empty if lexicon.language == "zh" else lexicon.function
    return _starred(sentence.tokens, [c or t not in words for t, c in zip(sentence.tokens, copied, strict=True)])


def _tells(frame: tuple[str, ...]) -> bool:
    """Whether enough words remain in a frame to tell it from others."""
    return len(frame) - frame.count("*") >= MIN_FRAME


def _starred(tokens: tuple[str, ...], hidden: list[bool]) -> tuple[str, ...]:
    """Neighbouring hidden tokens become one "*", together with the determiner before them."""
    out: list[str] = []
    for token, hide in zip(tokens, hidden, strict=True):
        if hide:
            while out and (out[-1] == "*" or out[-1] in _DETERMINERS):
                out.pop()
        out.append("*" if hide else token)
    return tuple(out)


_DETERMINERS = {"the", "a", "an", "your", "his", "her", "their", "this", "that", "those", "these"}


@lru_cache(maxsize=4096)
def _pairs(tokens: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(zip(("", *tokens), (*tokens, ""), strict=True))


def likeness_of(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    """Likeness in [0, 1] of two token sequences: shared neighbouring pairs (Dice), or the squared share of the longest
    common subsequence where that is larger, so that one replaced word in a frame costs little.
    """
    if one == other:
        return 1.0
    pairs, others = _pairs(one), _pairs(other)
    dice = 2 * len(pairs & others) / (len(pairs) + len(others))
    if dice < 0.25 or len(one) > 60 or len(other) > 60:
        return dice
    row = [0] * (len(other) + 1)
    for a in one:
        diagonal = 0
        for j, b in enumerate(other):
            above = row[j + 1]
            row[j + 1] = diagonal + 1 if a == b else max(above, row[j])
            diagonal = above
    common = 2 * row[-1] / (len(one) + len(other))
    return max(dice, common * common)
