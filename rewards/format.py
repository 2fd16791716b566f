"""The forms of a reply: their tags, what of them the client hears, and the reward for keeping to one.

Two forms: a thought between think tags and then the reply (RLVER, arXiv 2507.03112, whose paper gives nothing where the
tag is missing), and Kardia-R1's four spans (arXiv 2512.01282). A reply is read as it was written; where the prompt
opens the thought, the opening tag stands at its beginning all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from envs.models.fence import without_thought
from envs.trajectory import Score, Trajectory
from rewards.per_reply import per_reply

Form = Literal["think", "kardia"]
SPANS = ("understanding", "reasoning", "emotion", "response")
TAG = re.compile(r"</?think>|<\|(?:understanding|reasoning|emotion|response)_(?:begin|end)\|>")
TAGS: dict[Form, tuple[str, ...]] = {
    "think": ("<think>", "</think>"),
    "kardia": tuple(f"<|{span}_{end}|>" for span in SPANS for end in ("begin", "end")),
}
OPENED = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


class FormatReward:
    """The share of replies that keep the form. Read from the reply as written, thoughts and tags included."""

    def __init__(self, form: Form) -> None:
        self.name = f"format-{form}"
        self._form: Form = form

    async def score(self, trajectory: Trajectory) -> Score:
        """The score of one dialogue; None when it failed or nobody replied."""
        found = [format_flaws(turn.supporter.written, self._form) for turn in trajectory.turns]
        why = "; ".join(broken_form(trajectory, self._form).values())
        return per_reply(self.name, trajectory, [float(not flaws) for flaws in found], why or "all keep it")


def broken_form(trajectory: Trajectory, form: Form) -> dict[int, str]:
    """Which replies break the form, by turn from 0, and what is wrong with each."""
    found = (format_flaws(turn.supporter.written, form) for turn in trajectory.turns)
    return {turn: f"turn {turn + 1}: {', '.join(flaws)}" for turn, flaws in enumerate(found) if flaws}


def heard_part(text: str, form: Form | Literal["plain"]) -> str:
    """What the client hears of a reply: what follows its thought, and in Kardia's form the response alone.

    A reply without any tag is heard whole. Of a thought that was not closed, and of spans without a response, nothing
    is heard; a response that was cut off is heard as far as it goes.
    """
    text = without_thought(text)
    if form == "kardia" and TAG.search(text):
        _, begun, response = text.rpartition("<|response_begin|>")
        text = TAG.split(response, maxsplit=1)[0] if begun else ""
    return text


def format_flaws(text: str, form: Form) -> list[str]:
    """What is wrong with a reply's form, in fixed words; nothing where it is kept. A whole thought before Kardia's
    spans is no part of them: some chat templates begin every reply with one."""
    if form == "kardia":
        text = OPENED.sub("", text, count=1) if OPENED.match(text) else text
    tags = [tag for tag in TAG.findall(text) if tag in TAGS[form]]
    flaws = [f"{tag} is missing" for tag in TAGS[form] if tag not in tags]
    flaws += [f"{tag} stands {tags.count(tag)} times" for tag in TAGS[form] if tags.count(tag) > 1]
    if flaws:
        return flaws
    if tuple(tags) != TAGS[form]:
        return ["the tags are out of order"]
    return list(_empty_or_outside(text, form))


def _empty_or_outside(text: str, form: Form) -> Iterator[str]:
    """Flaws of a text whose tags are all there, once each and in order."""
    pieces = re.split("|".join(map(re.escape, TAGS[form])), text)
    inside = [("the thought", pieces[1]), ("the reply", pieces[2])]
    outside = pieces[:1]
    if form == "kardia":
        inside, outside = list(zip(SPANS, pieces[1::2], strict=True)), pieces[::2]
    yield from (f"{name} is empty" for name, piece in inside if not piece.strip())
    if any(piece.strip() for piece in outside):
        yield "there is text outside of the tags"


def span_of(text: str, span: str) -> str | None:
    """What stands in the one span of that name; None where there is none, or more than one."""
    found = re.findall(rf"<\|{span}_begin\|>(.*?)<\|{span}_end\|>", text, re.DOTALL)
    return found[0].strip() if len(found) == 1 else None
