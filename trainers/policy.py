"""The policy as a supporter: one object plays one dialogue and holds its token ids.

In the plain format these are the concatenated ids of all that was said. In the others a reply stands in later prompts
as the client heard it; its ids there are made once, when it was sampled, and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envs.errors import RunError
from envs.hashing import derived_seed
from envs.trajectory import Generation, Message
from trainers.chat_template import ChatTemplate
from trainers.policy_server import PolicyServer


@dataclass(frozen=True)
class Sampling:
    """How the policy samples. Lengths in tokens; ``max_context`` bounds a dialogue's prompt and reply together."""

    max_tokens: int = 64
    temperature: float = 1.0
    max_context: int = 2048


class PolicySupporter:
    """Answers with the policy under one adapter version (None: the base model).

    The reply to turn t is sampled with a seed from (``seed``, t), so it depends neither on batching nor on other
    dialogues. A reply without an end-of-turn gets a forced one, which is context and not an action.
    """

    def __init__(
        self, server: PolicyServer, template: ChatTemplate, adapter: str | None, seed: int, sampling: Sampling
    ) -> None:
        self._server, self._template, self._sampling = server, template, sampling
        self._adapter, self._seed = adapter, seed
        self._ids: list[int] = []
        self._turn = 0

    async def reply(self, messages: Sequence[Message]) -> Generation:
        """Answer the client's last message. Raises RunError when the engine fails or the context is full."""
        said = messages[-1]
        if said.speaker != "client" or sum(message.speaker == "supporter" for message in messages) != self._turn:
            raise ValueError("a supporter answers each message of its own client once, in order")
        template, sampling = self._template, self._sampling
        prompt_ids = [*self._ids, *(template.following(said.text) if self._turn else template.opening(said.text))]
        if len(prompt_ids) + sampling.max_tokens > sampling.max_context:
            raise RunError(
                f"turn {self._turn}: {len(prompt_ids)} prompt tokens and a reply of up to {sampling.max_tokens} don't "
                f"fit into {sampling.max_context}; raise policy.context_tokens or have fewer or shorter turns"
            )
        sampled = await self._server.generate(
            prompt_ids,
            adapter=self._adapter,
            seed=derived_seed(self._seed, self._turn),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            stop_ids=(template.end_of_turn,),
            session=self._seed,
        )
        if template.form == "plain":
            forced = [] if sampled.ids[-1] == template.end_of_turn else [template.end_of_turn]
            self._ids = [*prompt_ids, *sampled.ids, *forced]
        else:
            self._ids += template.retold(said.text, sampled.ids, first=not self._turn)
        self._turn += 1
        text, written = template.heard(sampled.ids), template.written(sampled.ids)
        return Generation(
            text=text,
            prompt_ids=sampled.prompt_ids,
            ids=sampled.ids,
            logprobs=sampled.logprobs,
            policy_version=self._adapter or "base",
            truncated=sampled.finish_reason == "length",
            raw=None if written == text else written,
        )
