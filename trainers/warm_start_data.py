"""Dialogues to imitate: read and checked row by row, and turned into the token ids that the policy sees in rollouts.

A row is a list of chat messages, as most datasets have them (Kardia-R1's too, whose assistant messages keep their four
spans), or one of attune's own recorded dialogues, whose receipts are checked. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from envs.cards import Language, PersonaCard
from envs.errors import InputError
from envs.hashing import content_hash, derived_seed
from envs.importers.rows import Row, read_rows
from envs.receipts import read_log
from envs.trajectory import Stop, Trajectory
from trainers.warm_start_config import WarmStart

if TYPE_CHECKING:
    from trainers.chat_template import ChatTemplate
    from trainers.config import RunConfig

RECORD, METRICS = "warm_start.json", "warm_start.jsonl"
REMEDY = "mend or remove this row"
SHAPE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


class Exchange(NamedTuple):
    """Something that a client said, and the reply to imitate."""

    said: str
    reply: str


@dataclass(frozen=True)
class Example:
    """One dialogue to imitate. ``where``: its file and line; ``card``: id and hash of the card that it was played with,
    where the row names one."""

    where: str
    language: Language
    exchanges: tuple[Exchange, ...]
    card: tuple[str, str] | None = None


class Imitation(NamedTuple):
    """A dialogue as token ids (T,); ``mask`` (T,) is 1 exactly on the replies' ids and the end-of-turn behind each."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True)
class Who:
    """The cards that a row may be of, and those that it must not: ``training`` by hash, ``held_out`` the others."""

    training: Mapping[str, PersonaCard]
    held_out: Sequence[PersonaCard]
    languages: Sequence[Language]

    @classmethod
    def of(cls, cards: Sequence[PersonaCard], training: Sequence[PersonaCard], languages: Sequence[Language]) -> Who:
        """From every card of a run and the ones that it trains with."""
        known = {card.hash: card for card in training}
        return cls(known, [card for card in cards if card.hash not in known], languages)

    def checked(self, example: Example, situation: str | None = None) -> Example:
        """``example`` itself. Raises InputError, naming file and line, when it is of a person who is held out."""
        if example.card:
            name, digest = example.card
            if name in {card.id for card in self.held_out}:
                raise InputError(
                    f"{example.where}: is a dialogue with {name}, a card that training may not see; {REMEDY}"
                )
            if digest not in self.training:
                raise InputError(
                    f"{example.where}: is a dialogue with {name}, which as it was is no training card of this run; "
                    f"{REMEDY}, or add the card (cards.paths)"
                )
        opening = _folded(example.exchanges[0].said)
        for card in self.held_out:
            same = (
                situation and isinstance(card.situation, str) and _folded(card.situation).startswith(_folded(situation))
            )
            if same or _folded(card.opening or "") == opening:
                raise InputError(f"{example.where}: tells of {card.id}, a card that training may not see; {REMEDY}")
        return example


def read_examples(term: WarmStart, who: Who, seed: int) -> list[Example]:
    """Every dialogue of ``term.data``, or ``term.max_dialogues`` of them, drawn with ``seed`` and kept in order.

    Raises InputError naming file and line for a row that is malformed or of a person who is held out, and when nothing
    is left.
    """
    found = [example for source in term.data for example in _examples_of(source, term, who)]
    if not found:
        raise InputError(
            f"warm_start.data: {', '.join(term.data)} hold no dialogue to imitate; name others"
            + (", or lower warm_start.min_emotion" if term.min_emotion is not None else "")
        )
    if term.max_dialogues is None or term.max_dialogues >= len(found):
        return found
    drawn = Random(derived_seed(seed, "warm start")).sample(range(len(found)), term.max_dialogues)
    return [found[place] for place in sorted(drawn)]


def _examples_of(source: str, term: WarmStart, who: Who) -> Iterator[Example]:
    rows = read_rows(source)
    if rows and "receipt" in rows[0].data:
        for line in read_log(Path(source)):
            where = f"{source}:{line.number}"
            if example := _recorded(where, line.trajectory, term.min_emotion, who):
                yield who.checked(example)
        return
    for row in rows:
        situation = row.data.get("situation")
        yield who.checked(_chat(row, who), situation if isinstance(situation, str) else None)


def _recorded(where: str, talk: Trajectory, least: float | None, who: Who) -> Example | None:
    """A recorded dialogue; None for one that broke off, ended too low, or has a reply that was cut off."""
    final = talk.final_emotion
    cut_off = any(turn.supporter.truncated for turn in talk.turns)
    if final is None or talk.stop is Stop.ERROR or not talk.turns or cut_off or (least is not None and final < least):
        return None
    said = [talk.opening.text if talk.opening else "", *(turn.client.text for turn in talk.turns)]
    exchanges = tuple(
        Exchange(*pair) for pair in zip(said[:-1], (t.supporter.written for t in talk.turns), strict=True)
    )
    card = who.training.get(talk.card_hash)
    language = card.language if card else who.languages[0]  # without the card it is refused anyway
    return Example(where, language, exchanges, (talk.card_id, talk.card_hash))


def _chat(row: Row, who: Who) -> Example:
    messages = row.data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{row.where}: messages: a dialogue belongs here, as {SHAPE}; {REMEDY}")
    texts = [_text(row.where, number, message) for number, message in enumerate(messages, 1)]
    talk = texts[1:] if texts[0][0] == "system" else texts
    first = 1 + len(texts) - len(talk)
    for number, (role, _) in enumerate(talk):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise InputError(
                f"{row.where}: message {first + number}: has the role {role!r} where {expected!r} belongs: user and "
                f"assistant take turns, the user begins, and a system message stands first; {REMEDY}"
            )
    pairs = [Exchange(talk[at][1], talk[at + 1][1]) for at in range(0, len(talk) - 1, 2)]
    if not pairs:
        raise InputError(f"{row.where}: has no message of the assistant, so nothing to imitate; {REMEDY}")
    name, digest = row.data.get("card_id"), row.data.get("card_hash")
    card = (str(name), str(digest or _hash_of(name, who))) if name else None
    return Example(row.where, _language(row, who), tuple(pairs), card)


def _text(where: str, number: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"{where}: message {number}: needs a role and a content, as in {SHAPE}; {REMEDY}")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{where}: message {number}: content: a text belongs here; {REMEDY}")
    return message["role"], content.strip()


def _hash_of(card_id: Any, who: Who) -> str:
    return next((digest for digest, card in who.training.items() if card.id == card_id), "")


def _language(row: Row, who: Who) -> Language:
    """The row's language, which decides on the system message; where it says none, the run's only one."""
    given, known = row.data.get("language"), get_args(Language)
    if given is None and len(who.languages) == 1:
        return who.languages[0]
    if given not in who.languages:
        told = f"{given!r} is not" if given else f"is missing; say which of {', '.join(known)} this row is in:"
        raise InputError(f"{row.where}: language: {told} among the run's {', '.join(who.languages)} (cards.languages)")
    return next(one for one in who.languages if one == given)


def imitation(example: Example, template: ChatTemplate, max_context: int, max_reply: int) -> Imitation | None:
    """The ids of a dialogue, up to its last reply that fits; None when its first one doesn't.

    The bounds are those of a rollout: ``max_reply`` tokens for a reply with its end-of-turn, ``max_context`` for a
    prompt and the longest reply together. Raises InputError, naming file and line, for a reply that holds a token with
    which the chat template marks turns.
    """
    ids: list[int] = []
    mask: list[int] = []
    for number, (said, reply) in enumerate(example.exchanges):
        try:
            context = template.following(said) if number else template.opening(said)
            reply_ids = [*template.reply_ids(reply), template.end_of_turn]
        except ValueError as error:
            raise InputError(f"{example.where}: exchange {number + 1}: {error}; {REMEDY}") from error
        if len(reply_ids) > max_reply or len(ids) + len(context) + max_reply > max_context:
            break
        ids += [*context, *reply_ids]
        mask += [0] * len(context) + [1] * len(reply_ids)
    return Imitation(ids, mask) if ids else None


def imitations(
    examples: Sequence[Example], templates: Mapping[Language, ChatTemplate], max_context: int, max_reply: int
) -> list[Imitation]:
    """Those of all dialogues that have a first reply that fits. Raises InputError when none has."""
    made = [imitation(example, templates[example.language], max_context, max_reply) for example in examples]
    kept = [one for one in made if one]
    if not kept:
        raise InputError(
            f"warm_start.data: no first reply fits into {max_reply} tokens (policy.max_new_tokens) and a context of "
            f"{max_context} (policy.context_tokens); raise them, or name other dialogues"
        )
    return kept


def data_record(term: WarmStart, examples: Sequence[Example], made: Sequence[Imitation]) -> dict[str, Any]:
    """What a run keeps of the dialogues that it imitates: how many, of which cards, and a hash over what is said.

    ``dialogues``: those that were read or drawn; ``imitated``: those with a first reply that fits; ``replies`` and
    ``trained_tokens`` are of these.
    """
    starts = [sum(here and not before for before, here in zip([0, *m[:-1]], m, strict=True)) for _, m in made]
    return {
        "data": [source if source.startswith("hf:") else Path(source).name for source in term.data],
        "dialogues": len(examples),
        "imitated": len(made),
        "replies": sum(starts),
        "tokens": sum(len(one.ids) for one in made),
        "trained_tokens": sum(sum(one.mask) for one in made),
        "without_card": sum(example.card is None for example in examples),
        "cards": {name: digest for name, digest in sorted({example.card for example in examples if example.card})},
        "sha256": content_hash([[example.language, *map(list, example.exchanges)] for example in examples]),
    }


def recorded_problem(
    record: Mapping[str, Any], steps: Sequence[Any], config: RunConfig, cards: Mapping[str, PersonaCard]
) -> str | None:
    """What is wrong with a run's ``data_record``, or None. What was said can't be checked: a run keeps its hash alone.

    ``steps``: those of warm_start.jsonl; ``cards``: the run's, by hash.
    """
    term, named, made = config.warm_start, record.get("cards"), record.get("imitated")
    if not isinstance(named, Mapping) or not isinstance(made, int):
        return "does not say which cards the imitated dialogues are of, and how many these are"
    for name, digest in named.items():
        card = cards.get(digest)
        if card is None or card.id != name or card.split != config.cards.train_split:
            return f"cards.{name}: is no training card of this run, and its dialogues were imitated"
    expected = term.epochs * math.ceil(made / term.batch)
    if list(steps) != list(range(expected)):
        return (
            f"imitated: {made} dialogues, {term.epochs} times, take {expected} steps; {METRICS} tells of {len(steps)}"
        )
    return None


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
