"""Whether a judge's ratings may be a reward: its agreement with people, axis by axis, and a verdict on each.

The verdict looks at how well the reliability over responders is known: MentalBench (arXiv 2510.19032) calls an axis
good where the bootstrap interval of ICC(C,1) over responders is at most .355 wide, moderate to .560, and poor beyond. A
narrow interval around nothing would pass, and a reward compares single responses where MentalBench compares means of a
thousand. So an axis passes only if, besides, the lower end of the item-level ICC(C,1) is at least .40: below that,
agreement is poor by Cicchetti (1994, doi:10.1037/1040-3590.6.4.284). Asking it of the lower end keeps a judge from
passing by luck on a few items.

Consistency, not agreement, decides, since a judge that is always one point too kind still ranks the replies of a group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from envs.errors import InputError
from envs.trajectory import Record
from rewards.agreement import Icc, Level, count_pairs, interval, item_level, responder_level
from rewards.ratings import Ratings

GOOD_WIDTH, MODERATE_WIDTH = 0.355, 0.560
ITEM_FLOOR = 0.40
MIN_RESPONDERS = 3
DIGITS = 6  # summation order differs between processors
NOBODY = "none"

Verdict = Literal["good", "moderate", "poor"]
Interval = tuple[float, float]


class Settings(Record):
    """How an audit is made. ``margin``: from which difference on people are taken to have ordered two responses.

    ``low`` and ``high`` are the ends of the scale; ratings outside are missing ones. None: as they stand in the files.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    margin: Annotated[float, Field(gt=0)] = 1.0
    low: float | None = None
    high: float | None = None


class Coefficient(Record):
    """An intraclass correlation with its 95 % intervals: ``ci95`` over the unit that its value is made of.

    ``ci95_responders`` resamples the responders, ``ci95_items`` the rated responses. None: not to be measured.
    """

    value: float | None
    ci95: Interval | None
    ci95_responders: Interval | None
    ci95_items: Interval | None


class ItemLevel(Record):
    """Agreement over single responses."""

    icc_c1: Coefficient
    icc_a1: Coefficient


class Inflation(Record):
    """How much of the scale the judge uses: shares of ratings at the top, and its spread over that of people."""

    top: float
    judge_at_top: float
    human_at_top: float
    spread_ratio: float | None


class AxisReport(Record):
    """One axis. ``icc_c1`` and ``icc_a1`` are over responders' means; ``bias`` is judge less people, in points.

    ``pairs`` counts the pairs that people ordered, ``ties`` and ``inversions`` are shares of them. ``verdict`` is by
    the interval's width, None where there is none; ``refused_for`` says why the axis does not pass.
    """

    axis: str
    icc_c1: Coefficient
    icc_a1: Coefficient
    item: ItemLevel
    pairs: int
    ties: float | None
    inversions: float | None
    bias: float
    inflation: Inflation
    missing_human: int
    missing_judge: int
    outside_scale: int
    verdict: Verdict | None
    passes: bool
    refused_for: tuple[str, ...]


class Audit(Record):
    """A judge's agreement with people. Counts are of responses; ``incomplete`` ones lack a rating on some axis."""

    settings: Settings
    responses: int
    used: int
    incomplete: int
    unmatched: int
    own_responses: int
    excluded: tuple[str, ...]
    responders: tuple[str, ...]
    conversations: int
    beyond_judge: int
    axes: tuple[AxisReport, ...]


def own_responders(judge: Sequence[str], responders: Sequence[str]) -> tuple[str, ...]:
    """The responders that bear one of the judge's names, letters and digits compared: "gpt-4o" is "gpt4o"."""
    names = {_bare(name) for name in judge}
    return tuple(sorted({one for one in responders if _bare(one) in names}))


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def excluded_responders(asked: Sequence[str] | None, judge: Sequence[str], ratings: Ratings) -> tuple[str, ...]:
    """Whose responses are left out: those asked for, or none, or else the judge's own. Raises InputError."""
    known = sorted(set(ratings.responders or ()))
    if asked is None:
        return own_responders(judge, known)
    if list(asked) == [NOBODY]:
        return ()
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"--exclude {unknown[0]}: there is no such responder; there are: {', '.join(known) or NOBODY}")
    return tuple(sorted(set(asked)))


def audit(ratings: Ratings, settings: Settings, excluded: Sequence[str] = ()) -> Audit:
    """Measure a judge against people, on the responses that both rated on every axis. Raises InputError."""
    human, judge = _on_scale(ratings.human, settings), _on_scale(ratings.judge, settings)
    complete = ~(np.isnan(human).any(axis=1) | np.isnan(judge).any(axis=1))
    names = np.array(ratings.responders or [""] * len(human))
    own = np.isin(names, list(excluded))
    kept = complete & ~own
    if kept.sum() < 2:
        raise InputError(
            f"{int(kept.sum())} of {len(human)} responses are rated by both on every axis ({', '.join(ratings.axes)})"
            + (" within the scale; mend --scale" if settings.low is not None else "; two are the least")
        )
    x, y = human[kept], judge[kept]
    responders, index = np.unique(names[kept], return_inverse=True)
    conversations = np.unique(np.array(ratings.conversations)[kept], return_inverse=True)[1]
    known = index if ratings.responders else None
    items = item_level(x, y, known, settings.resamples, settings.seed)
    means = (
        responder_level(x, y, index, settings.resamples, settings.seed)
        if known is not None and len(responders) >= MIN_RESPONDERS
        else None
    )
    reports = _reports(ratings, settings, x, y, items, means, conversations)
    return Audit(
        settings=settings,
        responses=len(human),
        used=len(x),
        incomplete=int((~complete).sum()),
        unmatched=ratings.unmatched,
        own_responses=int((own & complete).sum()),
        excluded=tuple(excluded),
        responders=tuple(map(str, responders)) if ratings.responders else (),
        conversations=int(conversations.max()) + 1,
        beyond_judge=int(((x < y.min()) | (x > y.max())).any(axis=1).sum()),
        axes=reports,
    )


def _on_scale(values: NDArray[np.float64], settings: Settings) -> NDArray[np.float64]:
    return np.where(_outside(values, settings), np.nan, values)


def _outside(values: NDArray[np.float64], settings: Settings) -> NDArray[np.bool_]:
    """Where a rating lies outside the scale, if the scale is known."""
    low = -np.inf if settings.low is None else settings.low
    high = np.inf if settings.high is None else settings.high
    return (values < low) | (values > high)


def _reports(
    ratings: Ratings,
    settings: Settings,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    items: Level,
    means: Level | None,
    conversations: NDArray[np.int64],
) -> tuple[AxisReport, ...]:
    pairs = count_pairs(x, y, conversations, settings.margin)
    top = float(y.max()) if settings.high is None else settings.high
    reports = []
    for at, axis in enumerate(ratings.axes):
        c1, a1 = _coefficients(means, at, "responders")
        item = ItemLevel.model_validate(dict(zip(("icc_c1", "icc_a1"), _coefficients(items, at, "items"), strict=True)))
        verdict, reasons = _verdict(c1, item.icc_c1)
        ordered = int(pairs.ordered[at])
        spread = float(x[:, at].std())
        reports.append(
            AxisReport(
                axis=axis,
                icc_c1=c1,
                icc_a1=a1,
                item=item,
                pairs=ordered,
                ties=_rounded(pairs.ties[at] / ordered) if ordered else None,
                inversions=_rounded(pairs.inversions[at] / ordered) if ordered else None,
                bias=_rounded((y[:, at] - x[:, at]).mean()),
                inflation=Inflation(
                    top=top,
                    judge_at_top=_rounded((y[:, at] >= top).mean()),
                    human_at_top=_rounded((x[:, at] >= top).mean()),
                    spread_ratio=_rounded(y[:, at].std() / spread) if spread else None,
                ),
                missing_human=int(np.isnan(ratings.human[:, at]).sum()),
                missing_judge=int(np.isnan(ratings.judge[:, at]).sum()),
                outside_scale=int(
                    (_outside(ratings.human[:, at], settings) | _outside(ratings.judge[:, at], settings)).sum()
                ),
                verdict=verdict,
                passes=not reasons,
                refused_for=reasons,
            )
        )
    return tuple(reports)


def _coefficients(level: Level | None, axis: int, unit: Literal["responders", "items"]) -> list[Coefficient]:
    """ICC(C,1) and ICC(A,1) of one axis."""
    if level is None:
        return [Coefficient(value=None, ci95=None, ci95_responders=None, ci95_items=None)] * 2
    found = []
    for kind in ("c1", "a1"):
        over = {
            "responders": _interval(level.over_responders, kind, axis),
            "items": _interval(level.over_items, kind, axis),
        }
        value = float(getattr(level.value, kind)[0, axis])
        found.append(
            Coefficient(
                value=_rounded(value) if np.isfinite(value) else None,
                ci95=over[unit],
                ci95_responders=over["responders"],
                ci95_items=over["items"],
            )
        )
    return found


def _interval(resampled: Icc | None, kind: str, axis: int) -> Interval | None:
    found = None if resampled is None else interval(getattr(resampled, kind)[:, axis])
    return None if found is None else (_rounded(found[0]), _rounded(found[1]))


def _verdict(responders: Coefficient, items: Coefficient) -> tuple[Verdict | None, tuple[str, ...]]:
    """The verdict by the interval's width, and why the axis is refused, if it is."""
    reasons, verdict = [], None
    if responders.ci95 is None:
        reasons.append("its reliability over responders can't be measured: too few responders, or ratings all alike")
    else:
        width = responders.ci95[1] - responders.ci95[0]
        verdict = "good" if width <= GOOD_WIDTH else "moderate" if width <= MODERATE_WIDTH else "poor"
        if verdict == "poor":
            reasons.append(f"the interval over responders is {width:.2f} wide, more than {MODERATE_WIDTH:.2f}")
    if items.ci95 is None:
        reasons.append("its reliability over single responses can't be measured: ratings all alike")
    elif items.ci95[0] < ITEM_FLOOR:
        reasons.append(f"over single responses ICC(C,1) may be as low as {items.ci95[0]:.2f}, under {ITEM_FLOOR:.2f}")
    return verdict, tuple(reasons)


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def judge_names(path: Path, model: str | None) -> tuple[str, ...]:
    """What the judge may be called among the responders: its file's stem, its model's name with and without owner."""
    return (path.stem, *((model, model.rsplit("/", 1)[-1]) if model else ()))
