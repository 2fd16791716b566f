"""Whether a chat template can carry a dialogue: found out by rendering dialogues that grow, and odd texts.

A template is a program that sees the whole dialogue and may write any part of it anew when the next message comes. What
the policy was sampled after can't be written anew. So everything between the messages has to stay as it was, for every
exchange, whatever the messages say. White space at the edges of a message is the one thing a template may take away:
history is token ids, in which it stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from envs.errors import InputError

CLIENT = tuple(f"placeholder {number} of the client" for number in ("one", "two", "three", "four"))
REPLIES = tuple(f"placeholder {number} of a reply" for number in ("one", "two", "three", "four"))
EXCHANGES = len(CLIENT)  # of the longest dialogue that is rendered; some templates change at the third or fourth
ODD_TEXTS = {  # what is odd about a text: the text, said by client and policy alike
    "a text of several lines": "first line\n\n  second line\nthird",
    "a text beyond ASCII": "我很难过。 Ça va? 🙂",
    "a text with white space at its edges": " \n padded \n",
    "a text in capitals and markup": "**LOUD** & <b>Bold</b> {{ braces }}",
    "an empty text": "",
}
DATES = (datetime(2001, 2, 3, 4, 5, 6), datetime(2012, 11, 10, 9, 8, 7))
CHATML = "configs/prompts/chatml.jinja"
SHIPPED = {  # a control token that a template writes: the files of ours that write it too
    "[INST]": "configs/prompts/templates/mistral.jinja",
    "<start_of_turn>": "configs/prompts/templates/gemma.jinja",
    "<|start_header_id|>": "configs/prompts/templates/llama3.jinja",
    "<｜User｜>": "configs/prompts/templates/deepseek_r1.jinja",
    "<|im_start|>": CHATML,
}
NO_THINK = "configs/prompts/templates/qwen3_no_think.jinja"
THINK = "<think>"
SHOWN = 60  # longest excerpt of a rendering in a message, in characters

Render = Callable[..., str]  # (messages, **variables of the template) -> text; raises whatever the template raises


@dataclass(frozen=True)
class Pieces:
    """The text around the messages: of the first exchange, and of every later one."""

    head: str  # up to the client's first message
    tail: str  # from there to where the reply begins
    between: str  # after a reply, up to the client's next message
    next_tail: str  # after a later message of the client, up to where the reply begins
    told: str  # in the place of tail before an earlier reply
    next_told: str  # in the place of next_tail before an earlier reply

    def around(self, client: Sequence[str], replies: Sequence[str]) -> list[str]:
        """Pieces and messages in turn, piece first and last: a dialogue that waits for its next reply."""
        told, parts = self.told, [self.head, client[0]]
        for reply, said in zip(replies, client[1:], strict=True):
            parts += [told, reply, self.between, said]
            told = self.next_told
        return [*parts, self.next_tail if replies else self.tail]


def take_apart(render: Render, source: str, system_prompt: str | None, *, retold: bool = False) -> Pieces:
    """What the template puts around the messages. Raises InputError with reason and remedy when that isn't constant.

    ``source`` is the template's text: by its control tokens the remedy names the file of ours that suits the model.
    ``retold``: what was sampled is told anew in the history, without its thoughts, so that other text may stand before
    an earlier reply than it was written after, as long as it is always the same.
    """
    probe = _Probe(render, source, system_prompt, retold)
    pieces = probe.placeholders()
    probe.odd_texts(pieces)
    probe.dates()
    return pieces


def refusal(reason: str, source: str) -> InputError:
    """The error about a template with this text: what it does, and what to do about it."""
    file = next((file for token, file in SHIPPED.items() if token in source), f"one like {CHATML} with its own tokens")
    if file == CHATML and "<think>" in source:
        file = f"{CHATML}, or {NO_THINK} for replies without thoughts"
    remedy = f"name a template that keeps the history as it was (policy.chat_template: {file}), or another model"
    return InputError(f"policy: the chat template {reason}; {remedy}")


@dataclass(frozen=True)
class _Probe:
    render: Render
    source: str
    system_prompt: str | None
    retold: bool

    def placeholders(self) -> Pieces:
        """The pieces, from a dialogue that grows exchange by exchange."""
        grown = [self._rendered(CLIENT[:count], REPLIES[: count - 1]) for count in range(1, EXCHANGES + 1)]
        self._complete(grown[0], CLIENT[:1])
        if not self.retold:
            self._grows(grown)
        messages = [text for pair in zip(CLIENT, (*REPLIES[:-1], ""), strict=True) for text in pair if text]
        self._complete(grown[-1], messages)
        head, *told, next_tail = re.split("|".join(map(re.escape, messages)), grown[-1])
        opened, closed = told[0::2], told[1::2]
        for what, texts in (("reply", closed), ("message of the client", opened[1:])):
            if other := next((text for text in texts if text != texts[0]), None):
                shown = _becomes(texts[0], other)
                raise self._refusal(f"puts something else after a later {what}: {shown}")
        tail = grown[0].partition(CLIENT[0])[2]
        pieces = Pieces(head, tail, closed[0], next_tail, opened[0], opened[1])
        for count, text in enumerate(grown, 1):
            composed = "".join(pieces.around(CLIENT[:count], REPLIES[: count - 1]))
            if text != composed:
                shown = _difference(text, composed)
                raise self._refusal(
                    f"is not prefix-preserving: what came before a message is rendered differently: {shown}"
                )
        return pieces

    def _grows(self, grown: Sequence[str]) -> None:
        """Each dialogue begins with the one before it."""
        for index, (before, after) in enumerate(pairwise(grown)):
            if not after.startswith(before + REPLIES[index]):
                reason = _change(before, after, index, self.system_prompt)
                raise self._refusal(f"is not prefix-preserving: with the client's next message, {reason}")

    def odd_texts(self, pieces: Pieces) -> None:
        """Messages that say something odd stay what they are, but for white space at their edges."""
        for what, odd in ODD_TEXTS.items():
            parts = pieces.around([odd] * EXCHANGES, [odd] * (EXCHANGES - 1))
            text = self._rendered([odd] * EXCHANGES, [odd] * (EXCHANGES - 1))
            pattern = (re.escape(p) if i % 2 == 0 else rf"\s*{re.escape(p.strip())}\s*" for i, p in enumerate(parts))
            if not re.fullmatch("".join(pattern), text):
                raise self._refusal(f"rewrites {what}: {_difference(''.join(parts), text)}")

    def dates(self) -> None:
        """The day on which the template is rendered makes no difference."""
        first, second = (self._rendered(CLIENT[:1], (), strftime_now=day.strftime) for day in DATES)
        if first != second:
            shown = _difference(first, second)
            raise self._refusal(f"writes today's date, and a resumed run would have another prompt: {shown}")

    def _refusal(self, reason: str) -> InputError:
        return refusal(reason, self.source)

    def _complete(self, text: str, messages: Sequence[str]) -> None:
        if (self.system_prompt or "").strip() not in text:
            raise self._refusal("leaves out the system prompt or rewrites it")
        if wrong := next((message for message in messages if text.count(message) != 1), None):
            raise self._refusal(f"leaves out, rewrites or repeats a message: {wrong!r}")

    def _rendered(self, client: Sequence[str], replies: Sequence[str], **variables: Any) -> str:
        try:
            return self.render(_messages(self.system_prompt, client, replies), **variables)
        except Exception as error:  # a template is a program of its own and may raise anything
            role = ", since it has no system role" if self.system_prompt and self._renders(client, replies) else ""
            raise self._refusal(f"can't render a supporter's dialogue{role} ({error})") from error

    def _renders(self, client: Sequence[str], replies: Sequence[str]) -> bool:
        """Whether the dialogue can be rendered without the system prompt."""
        try:
            self.render(_messages(None, client, replies))
        except Exception:  # as above
            return False
        return True


def _messages(system_prompt: str | None, client: Sequence[str], replies: Sequence[str]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for index, said in enumerate(client):
        messages.append({"role": "user", "content": said})
        messages += [{"role": "assistant", "content": reply} for reply in replies[index : index + 1]]
    return messages


def _change(before: str, after: str, index: int, system_prompt: str | None) -> str:
    """What becomes of a dialogue that ends with message ``index`` of the client when a reply and a message follow."""
    said, reply, system = CLIENT[index], REPLIES[index], (system_prompt or "").strip()
    shown = _difference(before + reply, after)
    if system and system not in after.partition(said)[0] and after.find(system) > after.find(reply) >= 0:
        return f"the system prompt moves to the newest message: {shown}"
    if any(text not in after for text in (*CLIENT[: index + 1], *REPLIES[: index + 1])):
        return f"an earlier message is left out: {shown}"
    kept, _, opened = before.partition(said)
    if after.startswith(kept + said):
        in_history = after.removeprefix(kept + said).partition(reply)[0]
        hint = " (policy.format: think may suit)" if opened.rstrip().endswith(THINK) else ""
        return f"other text stands before a reply than it was written after{hint}: {_becomes(opened, in_history)}"
    return f"what came before it is rendered differently: {shown}"


def _difference(before: str, after: str) -> str:
    """Both texts from shortly before the place where they part."""
    shorter = min(len(before), len(after))
    parted = next((place for place in range(shorter) if before[place] != after[place]), shorter)
    start = max(0, parted - SHOWN // 4)
    return _becomes(before[start:], after[start:])


def _becomes(before: str, after: str) -> str:
    return f"{_excerpt(before)} becomes {_excerpt(after)}"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
