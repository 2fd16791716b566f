"""The rule-based perceiver: what a reply does, noticed by word lists and patterns. No weights, no chance, no network.

It reads the surface. It can't know whether a feeling that it sees named is the right one, whether a paraphrase in other
words is true, or whether a well-made sentence is meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from envs.cards import HARMS, STRATEGIES, Act
from envs.perception import noise, overlap
from envs.perception.lexicon import Lexicon, load_lexicon
from envs.perception.percept import Heard, Move, Percept
from envs.perception.text import READ_CHARS, Reading, Sentence, count_words, read, spans_taken_up

_ACTS = {act.value: act for act in Act}
_MOVES = {move.value: move for move in Move}
_HARM_NAMES = {act.value for act in HARMS}
_STRATEGY_NAMES = {act.value for act in STRATEGIES}
_STATES = (
    "reflection",
    "names_feeling",
    "affirmation",
    "absolves",
    "information",
    "frame",
)  # what a question can't claim
_SHOWN = 120  # characters of evidence kept per label


@dataclass
class _Notes:
    """What has been noticed so far. ``found``: label -> (sentence, position, text), the first find of each label."""

    found: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    questions: int = 0

    def add(self, label: str, sentence: int, position: int, text: str) -> None:
        self.found.setdefault(label, (sentence, position, text[:_SHOWN]))


class RulePerceiver:
    """Perceives by ``configs/perception/en.yaml`` and ``zh.yaml``, in the client's language."""

    name = "rules-v1"

    def perceive(self, reply: str, heard: Heard) -> Percept:
        """Notice what ``reply`` does, said after ``heard``. Pure; never raises on any text."""
        lexicon = load_lexicon(heard.language)
        reading = read(reply[:READ_CHARS], lexicon)  # the cache keys on the text: keep it short
        if not reading.text:
            return _silent()
        client_terms = frozenset(term for text in heard.client for term in read(text, lexicon).terms)
        heard_noise = noise.listen(reading, client_terms, lexicon)
        sound = [bad < noise.BROKEN_FROM for bad in heard_noise.badness]
        grammatical = [
            ok and _is_sentence(s, client_terms, lexicon) for ok, s in zip(sound, reading.sentences, strict=True)
        ]
        notes = _Notes()
        for index, sentence in enumerate(reading.sentences):
            _note_sentence(notes, index, sentence, sound[index], grammatical[index], client_terms, lexicon)
        if markup := lexicon.named["markup"].search(reading.text.lower()):
            notes.add("meta", 0, markup.start(), markup.group().strip())
        return _percept(reply, reading, heard, lexicon, notes, heard_noise, grammatical)


def _silent() -> Percept:
    return Percept(
        acts=(Act.OTHER,),
        moves=(),
        uptake=0,
        taken_up=(),
        questions=0,
        words=0,
        echo=0,
        repetition=0,
        gibberish=0,
        flattery=False,
        meta=False,
        evidence={"other": "said nothing"},
    )


def _percept(
    reply: str,
    reading: Reading,
    heard: Heard,
    lexicon: Lexicon,
    notes: _Notes,
    heard_noise: noise.Noise,
    sound: list[bool],
) -> Percept:
    share, taken = overlap.uptake(reading, sound, heard, lexicon)
    echoed = overlap.echo(reading, heard, lexicon)
    repeated, earlier = overlap.repetition(reading, heard, lexicon)
    found = sorted(notes.found.items(), key=lambda item: item[1][:2])
    acts = tuple(_ACTS[label] for label, _ in found if label in _ACTS) or (Act.OTHER,)
    moves = tuple(_MOVES[label] for label, _ in found if label in _MOVES)
    evidence = {
        label: text
        for label, (_, _, text) in found
        if label in _ACTS or label in _MOVES or label in ("flattery", "meta")
    }
    if acts == (Act.OTHER,):
        evidence["other"] = reading.text[:_SHOWN]
    if taken:
        evidence["uptake"] = ", ".join(taken)[:_SHOWN]
    if earlier:
        evidence["repetition"] = earlier[:_SHOWN]
    if echoed:
        evidence["echo"] = f"{echoed:.2f} of the reply is the client's own wording"
    if heard_noise.finding:
        evidence["gibberish"] = heard_noise.finding[:_SHOWN]
    return Percept(
        acts=acts,
        moves=moves,
        uptake=share,
        taken_up=taken,
        questions=notes.questions,
        words=count_words(reply),
        echo=echoed,
        repetition=repeated,
        gibberish=heard_noise.share,
        flattery="flattery" in notes.found,
        meta="meta" in notes.found,
        evidence=evidence,
    )


def _is_sentence(sentence: Sentence, client_terms: frozenset[str], lexicon: Lexicon) -> bool:
    """Whether words are joined by function words at all; a bare list of keywords isn't a sentence."""
    taken = {i for start, end, _ in spans_taken_up(sentence, client_terms, lexicon) for i in range(start, end)}
    function = sum(t in lexicon.function for i, t in enumerate(sentence.tokens) if i not in taken)
    return len(sentence.tokens) >= (4 if lexicon.language == "zh" else 3) and function >= 1


def _note_sentence(
    notes: _Notes,
    index: int,
    sentence: Sentence,
    sound: bool,
    grammatical: bool,
    terms: frozenset[str],
    lexicon: Lexicon,
) -> None:
    """Match every rule on the sentence, settle what excludes what, and note the rest."""
    finds: dict[str, re.Match[str]] = {}
    for rule in lexicon.rules:
        if match := rule.find(sentence.plain):
            for label in rule.labels:
                finds.setdefault(label, match)
    taken = len(spans_taken_up(sentence, terms, lexicon)) if grammatical else 0
    labels = _settle(set(finds), finds, sentence, taken, terms, lexicon)
    if not sound:
        labels = {label for label in labels if label in _HARM_NAMES or label in ("meta", "flattery")}
    for label in sorted(labels):
        match = finds.get(label)
        notes.add(
            label,
            index,
            match.start() if match else len(sentence.plain),
            match.group().strip() if match else sentence.text,
        )
    if sound and _asks(sentence, lexicon):
        notes.questions += 1


def _asks(sentence: Sentence, lexicon: Lexicon) -> bool:
    """A question by its mark, or by its opening words where the mark was left out."""
    return sentence.asks or bool(lexicon.named["unmarked_question"].search(sentence.plain))


def _settle(
    labels: set[str],
    finds: dict[str, re.Match[str]],
    sentence: Sentence,
    taken: int,
    terms: frozenset[str],
    lexicon: Lexicon,
) -> set[str]:
    """Which of the matched labels stand beside each other in one sentence, and which follow from them."""
    for label in (
        "changing_subject",
        "meta",
    ):  # the client's own topic is no change of subject, their exam score not meta
        if label in labels and _said_by_client(finds[label].group(), terms, lexicon):
            labels.discard(label)
    if "praise" in labels:
        _settle_praise(labels, finds, sentence, taken, lexicon)
    asks = _asks(sentence, lexicon)
    interrogative = asks and bool(lexicon.named["interrogative"].search(sentence.plain))
    if interrogative:
        labels.difference_update(_STATES)
    harms = labels & _HARM_NAMES
    if harms:
        labels.difference_update(
            (
                "reflection",
                "names_feeling",
                "affirmation",
                "absolves",
                "restatement",
                "frame",
                "information",
                "considers_others",
                "invites_reflection",
                "open_question",
            )
        )
        if harms & {"ordering", "persuading", "lecturing", "blaming"}:
            labels.discard("suggestion")
    if "self_disclosure" in labels and not lexicon.named["second_person"].search(sentence.plain):
        labels.difference_update(("reflection", "names_feeling", "information"))
    if "reflection" not in labels and "absolves" not in labels:
        labels.discard("names_feeling")
    if asks or "open_question" in labels or "asks_permission" in labels:
        labels.add("question")
    strategies = labels & _STRATEGY_NAMES - {"question"}
    tagged = asks and not interrogative
    if not strategies and not harms and (not labels & {"question", "flattery", "meta"} or tagged):
        addressed = bool(lexicon.named["second_person"].search(sentence.plain))
        if taken >= 2 or (taken and ("frame" in labels or addressed)) or (addressed and "weighs_sides" in labels):
            labels.add("restatement")
    return labels


def _settle_praise(
    labels: set[str], finds: dict[str, re.Match[str]], sentence: Sentence, taken: int, lexicon: Lexicon
) -> None:
    """Praise with one strong word and a ground in what the client said is affirmation; else it is flattery."""
    superlatives = len(lexicon.named["superlative"].findall(sentence.plain))
    grounded = taken > 0 or bool(lexicon.named["ground"].search(sentence.plain))
    labels.add("affirmation" if grounded and superlatives < 2 else "flattery")
    finds.setdefault("flattery", finds["praise"])
    finds.setdefault("affirmation", finds["praise"])
    if "flattery" in labels:
        labels.discard("affirmation")


def _said_by_client(text: str, terms: frozenset[str], lexicon: Lexicon) -> bool:
    return bool(read(text, lexicon).terms & terms)
