"""The scoreboard of SAGE-style recordings: final emotions, successes, failures, and whether each update obeys the rule.

A dialogue's result is the emotion that was recorded with the client's last message, as the benchmark counts it
(arXiv 2505.02847); intervals are bootstrapped over cards. What wasn't recorded is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from envs.recordings import RecordedRules, Recording
from envs.trajectory import Record
from trainers.statistics import Estimate, Resampling, estimate_mean

UNKNOWN = "unknown"


class Scores(Record):
    """The results of some dialogues. ``score``: mean final emotion, 0-100, None where no final emotion was recorded.

    ``updates_unchecked`` lack an emotion or a change, so that nothing can be said of them; they are among ``updates``.
    """

    dialogues: int
    score: float | None
    score_ci95: tuple[float, float] | None
    successes: int
    failures: int
    success_rate: Estimate
    failure_rate: Estimate
    without_score: int
    updates: int
    updates_obeying_spec: int
    updates_unchecked: int


class FileScores(Scores):
    """The results of a file, and by need and temperament. ``missing``: what the recordings lack, counted.

    ``unheard_replies``: last replies that no client answered, so that they were never scored. ``claims_differing``:
    dialogues whose own summary names another final emotion than their last message.
    """

    file: str
    unheard_replies: int
    claims_differing: int
    missing: dict[str, int]
    by_need: dict[str, Scores]
    by_temperament: dict[str, Scores]


def score_file(name: str, recordings: Sequence[Recording], rules: RecordedRules, resampling: Resampling) -> FileScores:
    """The scoreboard of one file's recordings."""
    claims = [(one.claimed, one.final_emotion) for one in recordings if one.claimed is not None]
    whole = score(recordings, rules, resampling)
    return FileScores(
        **{key: getattr(whole, key) for key in Scores.model_fields},
        file=name,
        unheard_replies=sum(one.unheard is not None for one in recordings),
        claims_differing=sum(claimed != final for claimed, final in claims),
        missing=dict(sorted(Counter(lack for one in recordings for lack in one.missing).items())),
        by_need=_grouped(recordings, lambda one: one.hidden_need or UNKNOWN, rules, resampling),
        by_temperament=_grouped(recordings, lambda one: one.temperament or UNKNOWN, rules, resampling),
    )


def score(recordings: Sequence[Recording], rules: RecordedRules, resampling: Resampling) -> Scores:
    """The results of ``recordings``, one dialogue each. A dialogue without an id counts as a card of its own."""
    finals = [one.final_emotion for one in recordings]
    cards = [one.id or one.where for one in recordings]
    successes = [None if final is None else float(final >= rules.success_at) for final in finals]
    failures = [None if final is None else float(final < rules.failure_below) for final in finals]
    mean = estimate_mean(finals, cards, resampling)
    updates = [update for one in recordings for update in one.updates]
    verdicts = [
        None
        if update.before is None or update.change is None or update.after is None
        else rules.obeyed(update.before, update.change, update.after)
        for update in updates
    ]
    return Scores(
        dialogues=len(recordings),
        score=mean.mean,
        score_ci95=mean.ci95,
        successes=round(sum(value or 0 for value in successes)),
        failures=round(sum(value or 0 for value in failures)),
        success_rate=estimate_mean(successes, cards, resampling),
        failure_rate=estimate_mean(failures, cards, resampling),
        without_score=mean.missing,
        updates=len(updates),
        updates_obeying_spec=verdicts.count(True),
        updates_unchecked=verdicts.count(None),
    )


def _grouped(
    recordings: Sequence[Recording],
    group: Callable[[Recording], str],
    rules: RecordedRules,
    resampling: Resampling,
) -> dict[str, Scores]:
    groups = sorted({group(one) for one in recordings})
    return {name: score([one for one in recordings if group(one) == name], rules, resampling) for name in groups}
