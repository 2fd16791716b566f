"""Does it still speak? What a supporter's replies look like as language, beside what they score.

All but the perplexity follows from the record. What the embedded client perceived in each reply stands in its
appraisal; for other clients the rule-based perceiver reads the replies, which is the same reading.
Intervals are cluster bootstraps over cards, as in ``trainers.statistics``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from envs.cards import Act, Language
from envs.client_spec import ClientSpec
from envs.perception import get_perceiver
from envs.perception.percept import Heard
from envs.trajectory import Record, Trajectory
from trainers.samples import build_sample
from trainers.statistics import DIGITS, Estimate, Resampling, estimate_ratio

LANGUAGE = "language.json"  # in the folder of an evaluation
# Distinct-2 falls as a text grows; over windows of one size, sets of replies of any size compare.
WINDOW = 500  # bigrams
# For clients that perceive nothing themselves: who reads, and from which share of gibberish a reply counts as garbled.
PERCEIVER, GARBLED = "rules-v1", 0.2


class LanguageMeasures(Record):
    """Measures over a set of replies; shares in [0, 1]. ``n`` counts what is divided by: replies, sentences or tokens.

    ``garbled``: replies that were perceived as garbled. ``repeated``: sentences that the supporter had said before in
    the same dialogue. ``distinct_2``: distinct bigrams among ``WINDOW``, mean over the windows; None with fewer bigrams
    than that. ``words``: mean per reply. ``acts``: share of replies with each act. ``perplexity``: per sampled token,
    under the model before tuning; None when it was not measured or nothing was sampled.
    """

    replies: int
    garbled: Estimate
    repeated: Estimate
    distinct_2: float | None
    words: Estimate
    acts: dict[Act, Estimate]
    perplexity: Estimate | None = None


def measure_language(trajectories: Sequence[Trajectory], spec: ClientSpec, resampling: Resampling) -> LanguageMeasures:
    """Measure what was said to clients of ``spec``. Replies of failed dialogues count as well."""
    garbled_limit = spec.appraisal.limits.garbled if spec.appraisal else GARBLED
    ordered = sorted(trajectories, key=lambda trajectory: trajectory.dialogue_id)
    cards = [trajectory.card_id for trajectory in ordered]
    percepts = [perceived(trajectory, spec.perceiver) for trajectory in ordered]
    counts = [float(len(noticed)) for noticed in percepts]

    def per_reply(value: Callable[[dict[str, Any]], float]) -> Estimate:
        sums = [math.fsum(value(percept) for percept in noticed) for noticed in percepts]
        return estimate_ratio(sums, counts, cards, resampling)

    replies = [[turn.supporter.text for turn in trajectory.turns] for trajectory in ordered]
    repeated = [repeated_sentences(said) for said in replies]
    return LanguageMeasures(
        replies=round(sum(counts)),
        garbled=per_reply(lambda percept: percept["gibberish"] >= garbled_limit),
        repeated=estimate_ratio([r for r, _ in repeated], [n for _, n in repeated], cards, resampling),
        distinct_2=distinct_bigrams([reply for said in replies for reply in said]),
        words=per_reply(lambda percept: percept["words"]),
        acts={act: per_reply(lambda percept, act=act: act.value in percept["acts"]) for act in Act},
    )


def perceived(trajectory: Trajectory, perceiver: str | None) -> list[dict[str, Any]]:
    """What was noticed in each reply of a dialogue, (turns,): as recorded, or read by ``perceiver``."""
    if all("perceived" in turn.client.appraisal for turn in trajectory.turns):
        return [turn.client.appraisal["perceived"] for turn in trajectory.turns]
    language: Language = "zh" if trajectory.card_id.startswith("zh-") else "en"  # a card's id begins with it
    reader, percepts = get_perceiver(perceiver or PERCEIVER), []
    said = [message.text for message in trajectory.messages]
    for number, turn in enumerate(trajectory.turns):
        heard = Heard(
            language=language, client=tuple(said[: 2 * number + 1 : 2]), supporter=tuple(said[1 : 2 * number : 2])
        )
        percepts.append(reader.perceive(turn.supporter.text, heard).model_dump(mode="json"))
    return percepts


def repeated_sentences(replies: Sequence[str]) -> tuple[int, int]:
    """How many sentences of one dialogue's replies were said earlier in it, and how many sentences there are."""
    seen: set[str] = set()
    repeated = count = 0
    for reply in replies:
        for sentence in re.split(r"[.!?。！？…\n]+", reply):
            words = " ".join(tokens(sentence))
            if not words:
                continue
            count += 1
            repeated += words in seen
            seen.add(words)
    return repeated, count


def distinct_bigrams(replies: Sequence[str], window: int = WINDOW) -> float | None:
    """Distinct-2 over consecutive windows of ``window`` bigrams, each within one reply; the last ones are left out."""
    bigrams = [pair for reply in replies for pair in pairwise(tokens(reply))]
    starts = range(0, len(bigrams) - window + 1, window)
    if not starts:
        return None
    shares = [len(set(bigrams[start : start + window])) / window for start in starts]
    return round(math.fsum(shares) / len(shares), DIGITS)


def tokens(text: str) -> list[str]:
    """Lower-case words; each Chinese character is one."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+(?:['’][^\W_\u4e00-\u9fff]+)*", text.lower())


def perplexity(
    trajectories: Sequence[Trajectory],
    model_dir: Path | str,
    end_of_turn: int,
    resampling: Resampling,
    device: str = "cpu",
) -> Estimate | None:
    """Perplexity of the sampled tokens, each given the dialogue so far, under the model at ``model_dir`` in fp32.

    Reads the recorded ids, so the tokenizer has to be the policy's. None when nothing was sampled (scripted replies).
    """
    sampled = [t for t in trajectories if t.turns and all(turn.supporter.ids for turn in t.turns)]
    if not sampled:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = model.to(device).eval()
    losses: list[float] = []
    counts: list[float] = []
    for trajectory in sampled:
        sample = build_sample([turn.supporter for turn in trajectory.turns], end_of_turn, retold=True)
        loss = 0.0
        for segment in sample.segments:
            ids = torch.tensor([sample.ids[segment]], device=device)
            ours = torch.tensor(sample.policy_mask[segment][1:], dtype=torch.bool, device=device)
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, :-1][ours].float()
                loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:][ours], reduction="sum"))
        losses.append(loss)
        counts.append(float(len(sample.sampled_ids)))
    return estimate_ratio(losses, counts, [t.card_id for t in sampled], resampling, transform=math.exp)
