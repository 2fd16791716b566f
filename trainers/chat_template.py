"""What the tokenizer's chat template puts around the client's words, taken apart once and kept as token ids.

A dialogue's history is concatenated ids: what the policy sampled is never rendered or tokenised again. So the template
is rendered with placeholders at start, and checked: the next client message must not change what came before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.cards import Language
from envs.errors import InputError
from envs.models.fence import without_thought

Tokenizer = Any  # a transformers tokenizer; its own annotations are too wide to be checked against

PROMPTS_DIR = Path(__file__).resolve().parent.parent / "configs" / "prompts"
FIRST, REPLY, SECOND = "placeholder one", "placeholder two", "placeholder three"
REMEDY = "name a template that keeps the history as it was (policy.chat_template), or another model"


@dataclass(frozen=True)
class ChatTemplate:
    """The ids around the client's words. ``end_of_turn`` closes a reply; ``between`` follows it."""

    tokenizer: Tokenizer = field(repr=False)
    head: tuple[int, ...]  # up to the first message of the client
    tail: tuple[int, ...]  # after the client's first message, up to where the reply begins
    end_of_turn: int
    between: tuple[int, ...]  # after the end of a reply, up to the client's next message
    next_tail: tuple[int, ...]  # after a later message of the client

    def opening(self, text: str) -> list[int]:
        """The prompt ids of the first reply."""
        return [*self.head, *self.plain_ids(text), *self.tail]

    def following(self, text: str) -> list[int]:
        """The ids between the end of a reply and the start of the next one."""
        return [*self.between, *self.plain_ids(text), *self.next_tail]

    def plain_ids(self, text: str) -> list[int]:
        """The ids of what a client said, as text only: a control token spelled out in it stays ordinary characters."""
        ids: list[int] = []
        start = 0
        for cut in [*self._cuts(text), len(text)]:
            ids += self.tokenizer.encode(text[start:cut], add_special_tokens=False)
            start = cut
        if smuggled := self._control_ids.intersection(ids):
            raise ValueError(f"the client's words contain the control token {min(smuggled)}")
        return ids

    def reply_ids(self, text: str) -> list[int]:
        """The ids of a reply that was written elsewhere, without the end-of-turn that closes it.

        Control tokens spelled out in it are such tokens, as the policy could sample them. Raises ValueError for those
        with which the template marks turns.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if found := ({self.end_of_turn, *self.between} & self._control_ids).intersection(ids):
            raise ValueError(f"the reply contains {self.tokenizer.decode([min(found)])}, which marks turns")
        return [int(token) for token in ids]

    def heard(self, ids: Sequence[int]) -> str:
        """What the client hears of a sampled reply: without thoughts and without control tokens."""
        text = without_thought(self._decoded(ids))
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text.strip()

    def written(self, ids: Sequence[int]) -> str:
        """A sampled reply as it was written: with thoughts and control tokens, less the end-of-turn that closes it."""
        closed = len(ids) > 0 and ids[-1] == self.end_of_turn
        return self._decoded(ids[:-1] if closed else ids).strip()

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(token_id for token, token_id in self.tokenizer.get_added_vocab().items() if _is_control(token))

    @cached_property
    def _control_pattern(self) -> re.Pattern[str] | None:
        tokens = sorted(filter(_is_control, self.tokenizer.get_added_vocab()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens))) if tokens else None

    def _cuts(self, text: str) -> list[int]:
        """Where to cut ``text`` so that no piece holds a whole control token: after the first character of each."""
        cuts = []
        while self._control_pattern and (found := self._control_pattern.search(text, cuts[-1] if cuts else 0)):
            cuts.append(found.start() + 1)
        return cuts


def _is_control(token: str) -> bool:
    # Some tokenizers keep runs of spaces or line breaks in the same list; those are text.
    return len(token) > 1 and not token.isspace()


def check_template(tokenizer: Tokenizer, system_prompt: str | None) -> ChatTemplate:
    """Take the tokenizer's chat template apart. Raises InputError when it can't carry a dialogue."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    first, reply, second = (
        {"role": role, "content": text} for role, text in (("user", FIRST), ("assistant", REPLY), ("user", SECOND))
    )
    opening = _rendered(tokenizer, [*system, first])
    dialogue = _rendered(tokenizer, [*system, first, reply, second])
    if not dialogue.startswith(opening + REPLY):
        raise InputError(
            "policy: the chat template is not prefix-preserving: with the client's next message, what came before it "
            f"is rendered differently; {REMEDY}"
        )
    rest = dialogue.removeprefix(opening + REPLY)
    if opening.count(FIRST) != 1 or rest.count(SECOND) != 1 or (system_prompt or "").strip() not in opening:
        raise InputError(f"policy: the chat template leaves out the system prompt or a message; {REMEDY}")
    head, tail = opening.split(FIRST)
    between, next_tail = rest.split(SECOND)
    closing = _ids(tokenizer, between)
    if not closing or closing[0] not in tokenizer.get_added_vocab().values():
        raise InputError(f"policy: the chat template does not close a reply with a token of its own; {REMEDY}")
    return ChatTemplate(
        tokenizer=tokenizer,
        head=_ids(tokenizer, head),
        tail=_ids(tokenizer, tail),
        end_of_turn=closing[0],
        between=closing[1:],
        next_tail=_ids(tokenizer, next_tail),
    )


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of its own and may raise anything
        raise InputError(
            f"policy: the chat template can't render a supporter's dialogue ({error}); {REMEDY}"
        ) from error


def load_tokenizer(model_dir: Path, chat_template: Path | None = None) -> Tokenizer:
    """The tokenizer in a model folder, with its own chat template or a file's. Raises InputError without one."""
    from transformers import AutoTokenizer  # heavy, and the rest of this module does without

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
        if chat_template:
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"policy.model: {model_dir} has no tokenizer that can be loaded: {error}") from error
    return tokenizer


def read_prompt(language: Language, path: Path | None = None) -> str:
    """The supporter's system prompt: the language's, or the file at ``path``. Raises InputError without one."""
    path = path or PROMPTS_DIR / f"supporter_{language}.txt"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"policy.system_prompt: {path} can't be read: {error}") from error
    if not text:
        raise InputError(f"policy.system_prompt: {path} is empty; write one sentence that says who is speaking")
    return text
