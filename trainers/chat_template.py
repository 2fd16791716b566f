"""What the tokenizer's chat template puts around the client's words, taken apart once and kept as token ids.

A dialogue's history is concatenated ids: what the policy sampled is never rendered or tokenised again. So the template
is rendered with placeholders at start, and checked: the next client message must not change what came before it. In
the formats with thoughts an earlier reply stands in the history as the client heard it, after what the template puts
before an earlier reply; that, too, is taken apart once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from envs.cards import Language
from envs.errors import InputError
from rewards.format import Form, heard_part
from trainers.template_probe import THINK, refusal, take_apart

Tokenizer = Any  # a transformers tokenizer; its own annotations are too wide to be checked against

PROMPTS_DIR = Path(__file__).resolve().parent.parent / "configs" / "prompts"
Format = Literal["plain"] | Form


@dataclass(frozen=True)
class ChatTemplate:
    """The ids around the client's words. ``end_of_turn`` closes a reply; ``between`` follows it.

    ``form``: plain keeps what was sampled in the history, the others keep what was heard. ``thought_opened``: the
    template opens the thought itself, so that a sampled reply begins within it.
    """

    tokenizer: Tokenizer = field(repr=False)
    head: tuple[int, ...]  # up to the first message of the client
    tail: tuple[int, ...]  # after the client's first message, up to where the reply begins
    end_of_turn: int
    between: tuple[int, ...]  # after the end of a reply, up to the client's next message
    next_tail: tuple[int, ...]  # after a later message of the client
    form: Format = "plain"
    told: tuple[int, ...] = ()  # not plain: in the place of tail, before an earlier reply
    next_told: tuple[int, ...] = ()  # not plain: in the place of next_tail, before an earlier reply
    thought_opened: bool = False

    def opening(self, text: str) -> list[int]:
        """The prompt ids of the first reply."""
        return [*self.head, *self.plain_ids(text), *self.tail]

    def following(self, text: str) -> list[int]:
        """The ids between the end of a reply and the start of the next one."""
        return [*self.between, *self.plain_ids(text), *self.next_tail]

    def retold(self, text: str, ids: Sequence[int], *, first: bool) -> list[int]:
        """Not plain: a message of the client and the sampled reply to it, as they stand in the history from then on.

        The reply's ids are those that were sampled, as far as the client heard them, with white space around it in the
        same tokens. Only where a tag ends, or a control token stands, within them is what was heard tokenised again.
        """
        opened = (*self.head, *self.plain_ids(text), *self.told)
        later = (*self.between, *self.plain_ids(text), *self.next_told)
        return [*(opened if first else later), *self.heard_ids(ids), self.end_of_turn]

    def heard_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids of what the client hears of a sampled reply, without an end-of-turn; see ``retold``."""
        text, body = self.heard(ids), self._unclosed(ids)
        start = self._decoded(body).rfind(text)
        if not text or start < 0:
            return self.plain_ids(text)

        def length(count: int) -> int:
            return len(self._decoded(body[:count]))

        counts, stop = range(len(body) + 1), start + len(text)
        first, last = (bisect_right(counts, end, key=length) - 1 for end in (start, stop))
        last += length(last) < stop  # the token that reaches beyond the end
        kept = list(body[first:last])
        return kept if self._decoded(kept).strip() == text else self.plain_ids(text)

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
        text = heard_part(self._begun + self._decoded(ids), self.form)
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text.strip()

    def written(self, ids: Sequence[int]) -> str:
        """A sampled reply as it was written: with thoughts and control tokens, less the end-of-turn that closes it.

        A tag that the template wrote to open the thought stands before it, so that the record shows the whole thought.
        """
        return (self._begun + self._decoded(self._unclosed(ids))).strip()

    @property
    def _begun(self) -> str:
        return THINK if self.thought_opened else ""

    def _unclosed(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[:-1] if len(ids) > 0 and ids[-1] == self.end_of_turn else ids

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


def check_template(tokenizer: Tokenizer, system_prompt: str | None, form: Format = "plain") -> ChatTemplate:
    """Take the tokenizer's chat template apart. Raises InputError when it can't carry a dialogue of that format."""
    source = str(tokenizer.chat_template)
    pieces = take_apart(partial(_rendered, tokenizer), source, system_prompt, retold=form != "plain")
    closing = _ids(tokenizer, pieces.between)
    if not closing or closing[0] not in tokenizer.get_added_vocab().values():
        raise refusal(f"does not close a reply with a token of its own: {pieces.between!r} follows it", source)
    thought_opened = pieces.tail.rstrip().endswith(THINK)
    if form == "plain" and thought_opened:
        raise refusal("opens a thought before each reply (set policy.format: think)", source)
    told = {"told": _ids(tokenizer, pieces.told), "next_told": _ids(tokenizer, pieces.next_told)}
    return ChatTemplate(
        tokenizer=tokenizer,
        head=_ids(tokenizer, pieces.head),
        tail=_ids(tokenizer, pieces.tail),
        end_of_turn=closing[0],
        between=closing[1:],
        next_tail=_ids(tokenizer, pieces.next_tail),
        form=form,
        thought_opened=thought_opened,
        **({} if form == "plain" else told),
    )


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, str]], **variables: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))


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


def read_prompt(language: Language, path: Path | None = None, form: Format = "plain") -> str:
    """The supporter's system prompt: the language's, or the file at ``path``, and after it how to write the format.
    Raises InputError without one."""
    if form != "plain":
        asked = (PROMPTS_DIR / f"format_{form}_{language}.txt").read_text(encoding="utf-8").strip()
        return f"{read_prompt(language, path)}\n\n{asked}"
    path = path or PROMPTS_DIR / f"supporter_{language}.txt"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"policy.system_prompt: {path} can't be read: {error}") from error
    if not text:
        raise InputError(f"policy.system_prompt: {path} is empty; write one sentence that says who is speaking")
    return text
