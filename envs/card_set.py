"""Sets of cards: loading folders of them, splitting by persona text, and finding leaks between the splits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from envs.cards import CARDS_DIR, HiddenNeed, PersonaCard, Split, load_card
from envs.errors import InputError
from envs.hashing import text_hash

SHINGLE = 8  # characters; long enough that two strangers share few, short enough that a paraphrase keeps many
ROUNDING = 1e-9  # what floating point may lose of a whole number
NEAR = 0.5  # Jaccard likeness of shingles from which two cards are near-duplicates


@dataclass(frozen=True)
class Leak:
    """Two cards of different splits that tell of the same person. ``likeness`` is 1.0 for the same persona text."""

    first: PersonaCard
    second: PersonaCard
    likeness: float


def load_cards(paths: Iterable[Path | str] = (CARDS_DIR,)) -> list[PersonaCard]:
    """Load every card at ``paths`` (files, or folders read with all below them), sorted by id.

    Raises InputError with every problem found, a line each, so that one run shows them all.
    """
    return list(load_card_files(paths).values())


def load_card_files(paths: Iterable[Path | str] = (CARDS_DIR,)) -> dict[Path, PersonaCard]:
    """Every card at ``paths`` by its file, sorted by id. Raises InputError as ``load_cards`` does."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder of cards")
        files += sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no card (*.yaml) lies there")
    cards: dict[Path, PersonaCard] = {}
    problems, seen = [], {}
    for file in files:
        try:
            card = load_card(file)
        except InputError as error:
            problems.append(str(error))
            continue
        if card.id in seen:
            problems.append(f"{file}: id {card.id!r} is already that of {seen[card.id]}; give it another")
        seen[card.id] = file
        cards[file] = card
    if problems:
        raise InputError("\n".join(problems))
    return dict(sorted(cards.items(), key=lambda item: item[1].id))


def persona_text(card: PersonaCard) -> str:
    """What says who a card's person is, less its layout: two cards with the same text are about the same person."""
    profile = card.profile
    if isinstance(profile, str):
        return _folded(profile)
    text = f"{profile.name} {profile.age} {profile.occupation} {profile.place} {profile.background} {profile.family}"
    return _folded(text)


def _folded(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def assign_splits(cards: Sequence[PersonaCard]) -> dict[str, Split]:
    """Split by persona text: two thirds train, one sixth dev, one sixth test in each language, needs spread evenly.

    Whom the held-out places go to follows from the hash of the persona text, so a card's id and file decide nothing;
    cards with the same persona text share a split, and people in acute danger go to test. Returns {card id: split}.
    """
    splits: dict[str, Split] = {}
    for language in sorted({card.language for card in cards}):
        people: dict[str, list[PersonaCard]] = defaultdict(list)
        for card in cards:
            if card.language == language:
                people[text_hash(persona_text(card))].append(card)
        seen = 0
        for need in (*HiddenNeed, ""):
            # A person who is told twice with different needs counts under one of them, so that the split stays one.
            group = [key for key in people if min(card.hidden_need or "" for card in people[key]) == need]
            # Running totals keep the sixths exact over small groups; the half shift lets test and dev take turns.
            before, seen = seen, seen + len(group)
            tests = (seen + 3) // 6 - (before + 3) // 6
            devs = seen // 6 - before // 6
            order = sorted(group, key=lambda key: (all(c.risk == "none" for c in people[key]), key))
            for position, key in enumerate(order):
                acute = any(card.risk == "acute" for card in people[key])
                split: Split = "test" if acute or position < tests else "dev" if position < tests + devs else "train"
                splits.update({card.id: split for card in people[key]})
    return splits


def find_leaks(cards: Sequence[PersonaCard], near: float = NEAR) -> list[Leak]:
    """Pairs of cards in different splits with the same persona text, or whose whole content is near-duplicate."""
    return [
        Leak(cards[first], cards[second], likeness)
        for first, second, likeness in alike(cards, near)
        if cards[first].split != cards[second].split
    ]


def same_persons(cards: Sequence[PersonaCard]) -> list[list[PersonaCard]]:
    """The cards of each person, who is known by language and persona text; people in the order of their first card."""
    people: dict[tuple[str, str], list[PersonaCard]] = defaultdict(list)
    for card in cards:
        people[card.language, persona_text(card)].append(card)
    return list(people.values())


def alike(cards: Sequence[PersonaCard], near: float = NEAR) -> list[tuple[int, int, float]]:
    """(index, later index, likeness) of all pairs of one language with the same persona text or ``near``-duplicate
    content, in their order; likeness is 1.0 for the same persona text. ``near`` has to be above 0.

    Most pairs are ruled out by counting: of two sets of n and m shingles with a Jaccard index of ``near`` or more,
    either shares near / (1 + near) * (n + m) with the other, and so that many less k when its k commonest are not
    counted (prefix filter, Chaudhuri et al. 2006). Nothing is missed, and hundreds of cards take seconds.
    """
    persona = [persona_text(card) for card in cards]
    shingles = [_shingles(_folded(_content(card))) for card in cards]
    pairs = set(_close(shingles, near))
    people: dict[str, list[int]] = defaultdict(list)
    for second, text in enumerate(persona):
        pairs |= {(first, second) for first in people[text]}
        people[text].append(second)
    found = []
    for first, second in sorted(pairs):
        if cards[first].language == cards[second].language:
            same = persona[first] == persona[second]
            found.append((first, second, 1.0 if same else jaccard(shingles[first], shingles[second])))
    return [pair for pair in found if persona[pair[0]] == persona[pair[1]] or pair[2] >= near]


def _close(shingles: Sequence[frozenset[str]], near: float) -> Iterable[tuple[int, int]]:
    """(index, later index) of every pair with a Jaccard index of ``near`` or more, and of few others."""
    count = Counter(shingle for own in shingles for shingle in own)
    share = near / (1 + near)
    holders: dict[str, list[int]] = defaultdict(list)
    for one, own in enumerate(shingles):
        held = sorted((shingle for shingle in own if count[shingle] > 1), key=lambda shingle: (count[shingle], shingle))
        # The commonest are not counted: as many as leave a likely pair half of what it has to share.
        rare = max(0, len(held) - int(share * len(own)))
        common = Counter(chain.from_iterable(holders[shingle] for shingle in held[:rare]))
        for other, shared in common.items():
            if shared + len(held) - rare >= share * (len(own) + len(shingles[other])) - ROUNDING:
                yield other, one
        for shingle in held:
            holders[shingle].append(one)


class Crowd:
    """Cards that a new one is compared with, one by one."""

    def __init__(self, cards: Iterable[PersonaCard] = ()) -> None:
        self._known: list[tuple[PersonaCard, str, frozenset[str]]] = []
        for card in cards:
            self.add(card)

    def add(self, card: PersonaCard) -> None:
        """Let later cards be compared with this one too."""
        self._known.append((card, persona_text(card), _shingles(_folded(_content(card)))))

    def nearest(self, card: PersonaCard) -> tuple[PersonaCard | None, float]:
        """The most like card of the same language, with the likeness of ``alike``; (None, 0.0) where there is none."""
        persona, own = persona_text(card), _shingles(_folded(_content(card)))
        best: tuple[PersonaCard | None, float] = (None, 0.0)
        for known, other, shingles in self._known:
            if known.language == card.language:
                likeness = 1.0 if other == persona else jaccard(shingles, own)
                best = max(best, (known, likeness), key=lambda pair: pair[1])
        return best

    def free_id(self, wanted: str) -> str:
        """``wanted``, or with the first number behind it that no card has."""
        taken = {card.id for card, *_ in self._known}
        return next(
            name for name in (wanted, *(f"{wanted}-{n}" for n in range(2, len(taken) + 3))) if name not in taken
        )


def _content(card: PersonaCard) -> str:
    facts = " ".join(fact.say for fact in card.facts or ())
    situation = card.situation if isinstance(card.situation, str) else card.situation.summary
    return f"{persona_text(card)} {situation} {card.opening or ''} {facts}"


def _shingles(text: str) -> frozenset[str]:
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Size of the intersection over that of the union, in [0, 1]."""
    return len(first & second) / (len(first | second) or 1)
