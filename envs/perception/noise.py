"""How much of a reply isn't language: random characters, repeated or shuffled words, broken-off sentences.

There is no language model here. Each sentence starts sound and loses trust by findings: adjacent words that no sentence
has or that hardly ever meet, words said twice in a row, loops, no function words, letter debris.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from envs.perception.lexicon import Lexicon
from envs.perception.text import HAN, HAN_CHAR, Reading, Sentence

ONE_FINDING, MORE_FINDINGS = 0.6, 1.0  # badness of a sentence with one break, with several
BROKEN_FROM = 0.5  # badness from which a sentence earns no strategy and no uptake
MIN_FUNCTION = 0.15  # least share of function words in an English sentence of nine words or more
STRANGE_TRIPLES = 2  # letter triples that no English word has, from which a word is strange
_UNITS = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:['\-][^\W_{HAN}]+)*|[^\w\s]")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
_LETTER = re.compile(r"[^\W\d_]")
_CONSONANT = "[bcdfghjklmnpqrstvwxz]"
_JUNK = re.compile(
    rf"{_CONSONANT}{{6}}|^(?!hmm|shh|ps|brr|mmm|grr){_CONSONANT}{{4,}}$"  # no vowel far and wide
    r"|q[^u]|[vxz][qjxk]|j[bcdfgklpqtvwxz]|[bcdfgjpqvz]{3}(?=.)(?<!^...)"  # letters that don't meet
    r"|[a-z]\d+[a-z]|\d[a-z]{3,}\d|^(?:[^aiouy\d]|.{26,})$|(\w)\1\1\1"  # digits inside, lone letters, endless words
)
_CAMEL = re.compile(r"\b[a-z]{2,}[A-Z][a-z]+|\b[a-z]{2,},[A-Z][a-z]+")
_TITLED = re.compile(r"(?<=[a-z] )([A-Z][a-z']+)(?= [a-z]|[.?!]$|, )")
_I = re.compile(r"(?<= )I(?= [a-z])")
_NAMES = {"will", "may", "he", "him", "his", "no", "yes", "okay", "hello", "hi", "i'm", "i've", "i'd", "i'll", "thank"}
_FULL_STOP = re.compile(r"(?<!\b[a-zA-Z])(?<!\betc)(?<!\bvs)(?<!\.)\.$")


@dataclass(frozen=True)
class Noise:
    """``share`` of the reply that isn't language, ``badness`` (sentences,), both in [0, 1]; the first finding."""

    share: float
    badness: tuple[float, ...]
    finding: str


def listen(reading: Reading, client_terms: frozenset[str], lexicon: Lexicon) -> Noise:
    """How much of ``reading`` isn't language. ``client_terms`` are never junk: a name the client used is a word."""
    if not any(s.tokens for s in reading.sentences):
        return Noise(1.0, tuple(1.0 for _ in reading.sentences), "no words")
    if other := _other_language(reading.text, lexicon):
        return Noise(other, tuple(1.0 if other >= BROKEN_FROM else 0.0 for _ in reading.sentences), "other language")
    judge = _judge_chinese if lexicon.language == "zh" else _judge_english
    badness, finding = [], ""
    for sentence, cased in zip(reading.sentences, _miscased(reading, lexicon), strict=True):
        bad, why = judge(sentence, client_terms, lexicon)
        if cased:
            bad, why = min(1.0, bad + ONE_FINDING), why or cased
        loop_bad, loop = _loops(sentence, lexicon)
        debris = lexicon.named["debris"].search(sentence.plain)
        bad = min(1.0, max(bad, loop_bad, 0.6 if debris else 0.0))
        badness.append(bad)
        finding = finding or why or loop or (debris.group() if debris else "")
    weights = [max(1, len(s.tokens)) for s in reading.sentences]
    share = sum(b * w for b, w in zip(badness, weights, strict=True)) / sum(weights)
    whole, why = _whole(reading, lexicon)
    if whole >= BROKEN_FROM:
        badness = [max(b, whole) for b in badness]
    return Noise(round(min(1.0, max(share, whole, _symbols(reading.text))), 3), tuple(badness), finding or why)


def _other_language(text: str, lexicon: Lexicon) -> float:
    """1.0 for a reply in another language than the client's, the foreign share for a mixed one, 0 below a tenth."""
    han, latin, letters = len(HAN_CHAR.findall(text)), len(_LATIN.findall(text)), len(_LETTER.findall(text))
    if not letters:
        return 0.0
    if lexicon.language == "zh":
        latin_words = latin / 5
        other = (letters - han - latin) + latin_words
        share = other / max(1.0, han + other)
    else:
        words = [token.lower() for token in re.findall(r"[^\W\d_]+", text)]
        foreign = sum(word in lexicon.foreign for word in words)
        share = max((letters - latin) / letters, 1.0 if foreign >= 3 and foreign >= 0.2 * len(words) else 0.0)
    return 1.0 if share > 0.5 else (round(share, 3) if share > (0.35 if lexicon.language == "zh" else 0.1) else 0.0)


def _judge_english(sentence: Sentence, client_terms: frozenset[str], lexicon: Lexicon) -> tuple[float, str]:
    tokens, n = sentence.tokens, len(sentence.tokens)
    if not n:
        return 0.0, ""
    broken = [m.group() for m in lexicon.named["broken"].finditer(sentence.plain)]
    if "?" in sentence.text[-3:]:
        broken = [b for b in broken if not b.endswith("?")]
    named = set(re.findall(r"\b[A-Z][\w'\-]*", sentence.text[1:]))
    named = {name.lower() for name in named} if len(named) <= n / 2 else set()
    junk = [
        t
        for t, root in zip(tokens, sentence.stems, strict=True)
        if t not in lexicon.function
        and t not in named
        and root not in client_terms
        and not t.isdigit()
        and _JUNK.search(t)
    ]
    function = sum(t in lexicon.function for t in tokens)
    verbless = n >= 10 and not lexicon.named["verb"].search(sentence.plain) and function < 0.35 * n
    capital = named | {tokens[0]} if sentence.text[:1].isupper() else named
    words = zip(tokens, sentence.stems, strict=True)
    strange = [t for t, root in words if t not in capital and root not in client_terms and _strange(t, lexicon)]
    unlikely = _unlikely(sentence, lexicon) + [m.group() for m in lexicon.named["slip"].finditer(sentence.plain)]
    unlikely += [t for t in dict.fromkeys(strange) if t not in junk]
    if clash := _clash(sentence, lexicon):
        broken.append(clash)
    salad = (n >= 5 and function == 0) or (n >= 9 and function < MIN_FUNCTION * n) or verbless
    if salad:
        return 1.0, sentence.text[:60]
    junk_share = len(junk) / n
    findings = len(broken) + len(unlikely) // 2
    bad = (0.1 if unlikely else 0.0, ONE_FINDING, MORE_FINDINGS)[min(2, findings)]
    found = broken + (unlikely if len(unlikely) > 1 else []) + junk + [""]
    return min(1.0, max(bad, 1.5 * junk_share if len(junk) > 1 else junk_share)), found[0]


def _strange(word: str, lexicon: Lexicon) -> bool:
    """Whether a small-letter word has several letter triples that English words don't have."""
    if word in lexicon.function or not word.isascii() or not word.isalpha():
        return False
    edged = f"^{word}$"
    return sum(edged[i : i + 3] not in lexicon.letters for i in range(len(word))) >= STRANGE_TRIPLES


def _clash(sentence: Sentence, lexicon: Lexicon) -> str:
    """More finite verbs than the sentence has room for: one for each possible subject, comma, conjunction, question
    word and verb of saying or thinking that could take a clause. "I also had would struggle with the lunch" has two for
    one. "" where there is room.
    """
    verbs = [m.group() for m in lexicon.named["finite"].finditer(sentence.plain)]
    subjects = lexicon.named["subject"].findall(sentence.plain)
    openers = lexicon.named["clause_opener"].findall(sentence.plain)
    room = len(subjects) + len(openers) + sentence.plain.count(",")
    room += not lexicon.named["subject"].match(sentence.plain)
    return " ... ".join(verbs[:3]) if len(verbs) > room else ""


def _miscased(reading: Reading, lexicon: Lexicon) -> list[str]:
    """For each sentence, capital and small letters that show a seam: "what you Take the", "theLast", or a small letter
    after a full stop in a reply that begins other sentences with capitals. "" where there is none.
    """
    found: list[str] = []
    starts = [s.text.lstrip("\"'(*-")[:1] for s in reading.sentences]
    mixed = lexicon.language == "en" and (any(c.isupper() for c in starts) or bool(_I.search(reading.text)))
    before = ""
    for sentence, start in zip(reading.sentences, starts, strict=True):
        seam = _CAMEL.search(sentence.text) if lexicon.language == "en" else None
        titled = [
            m.group(1) for m in _TITLED.finditer(sentence.text) if m.group(1).lower() in lexicon.function - _NAMES
        ]
        shrunk = mixed and start.islower() and (not before or _FULL_STOP.search(before)) and not seam
        found.append(seam.group() if seam else titled[0] if titled else sentence.text[:30] if shrunk else "")
        before = sentence.text
    return found


def _unlikely(sentence: Sentence, lexicon: Lexicon) -> list[str]:
    """Neighbours with nothing but a space between them that hardly ever meet."""
    units = [*_UNITS.findall(sentence.plain), "END"]
    return [
        f"{a} {b}"
        for a, b in pairwise(units)
        if ((a, b) in lexicon.unlikely_pairs if b not in ".!" else (a, "END") in lexicon.unlikely_pairs)
    ]


def _judge_chinese(sentence: Sentence, client_terms: frozenset[str], lexicon: Lexicon) -> tuple[float, str]:
    han = [t for t in sentence.tokens if HAN_CHAR.match(t)]
    broken = [m.group() for m in lexicon.named["broken"].finditer(sentence.plain)]
    unlikely = _unlikely(sentence, lexicon)
    findings = len(broken) + len(unlikely) // 2
    bad = (0.1 if unlikely else 0.0, ONE_FINDING, MORE_FINDINGS)[min(2, findings)]
    chunks = [c for c in re.split(r"[\s、,]+", sentence.plain.rstrip("。.!！")) if c]
    if (
        len(chunks) >= 4
        and all(len(c) <= 4 for c in chunks)
        and not any(ch in lexicon.empty for c in chunks for ch in c)
    ):
        return 1.0, sentence.text[:30]
    rare = [c for c in han if c not in lexicon.function and not _is_common(c)]
    if len(rare) >= 2 and len(rare) > 0.2 * len(han):
        return 1.0, "".join(rare[:8])
    return bad, (broken + (unlikely if len(unlikely) > 1 else []) + [""])[0]


def _is_common(char: str) -> bool:
    """In GB 2312's first level: the 3,755 characters of everyday use."""
    code = char.encode("gb2312", "ignore")
    return len(code) == 2 and 0xB0 <= code[0] <= 0xD7


def _loops(sentence: Sentence, lexicon: Lexicon) -> tuple[float, str]:
    """Words or phrases said twice in a row with nothing between them, as a badness and the words."""
    units = _UNITS.findall(sentence.plain)
    zh = lexicon.language == "zh"
    hits, shown, covered = 0, "", 0
    for size in (1, 2, 3, 4, 5):
        i = 0
        while i + 2 * size <= len(units):
            block = units[i : i + size]
            if block == units[i + size : i + 2 * size] and any(u[0].isalnum() for u in block):
                repeats = 2
                while units[i + repeats * size : i + (repeats + 1) * size] == block:
                    repeats += 1
                if not _harmless(block, repeats, zh, lexicon):
                    hits += 1
                    covered += repeats * size
                    shown = shown or " ".join(block * min(repeats, 3))
                i += repeats * size
            else:
                i += 1
    if not hits:
        return 0.0, ""
    return (1.0 if covered >= 0.5 * len(units) else ONE_FINDING if hits == 1 else 0.9), shown


def _harmless(block: list[str], repeats: int, zh: bool, lexicon: Lexicon) -> bool:
    if not all(u[0].isalnum() for u in block):
        return True  # "step by step, step by step,": a repetition with commas is rhetoric
    if zh:
        return (repeats < 3 and (len(block) <= 2)) or (block[0] in lexicon.doubles and len(block) == 1 and repeats < 6)
    return len(block) == 1 and ((block[0] in lexicon.doubles and repeats == 2) or block[0].isdigit())


def _whole(reading: Reading, lexicon: Lexicon) -> tuple[float, str]:
    """Findings about the whole reply: one word over and over, few distinct pairs, single words."""
    tokens = reading.tokens
    content = Counter(t for s in reading.sentences for t in s.stems if t)
    if content and lexicon.language != "zh":
        word, count = content.most_common(1)[0]
        if count >= 4 and count >= 0.25 * len(tokens):
            return 0.8, word
    pairs = list(pairwise(tokens))
    if len(pairs) >= 16 and len(set(pairs)) < (0.4 if lexicon.language == "zh" else 0.6) * len(pairs):
        return 0.8, " ".join(tokens[:6])
    single_words = sum(len(s.tokens) == 1 for s in reading.sentences)
    if single_words >= 4 and single_words > 0.7 * len(reading.sentences):
        return 0.8, "single words"
    return 0.0, ""


def _symbols(text: str) -> float:
    """Share of symbols (no letters, digits, spaces or usual punctuation), as a badness once it passes a third."""
    symbols = sum(not (ch.isalnum() or ch.isspace() or ch in ".,;:!?'\"-…()。、《》「」~") for ch in text)
    share = symbols / max(1, len(text))
    return share if share > 0.34 else 0.0
