"""The breaker: it opens after failures in a row, lets one probe through at a time, and fails nobody."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.models.breaker import Breaker, Permit
from envs.models.endpoint_spec import BreakerSettings

QUICK = BreakerSettings(failures=3, open_seconds=0.02, max_open_seconds=0.08)


def breaker(settings: BreakerSettings = QUICK) -> Breaker:
    return Breaker("the server", settings)


async def trip(subject: Breaker, times: int = 3) -> None:
    for _ in range(times):
        subject.failed(await subject.admit(), "status 503")


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 5))


def test_it_opens_after_the_given_failures_in_a_row_and_not_before() -> None:
    async def scenario() -> None:
        subject = breaker()
        await trip(subject, 2)
        subject.succeeded(await subject.admit())
        await trip(subject, 2)
        assert not subject.is_open and subject.openings == []
        await trip(subject, 1)
        assert subject.is_open and [each.reason for each in subject.openings] == ["status 503"]

    run(scenario())


def test_while_it_is_open_one_probe_passes_and_the_others_wait_for_its_success() -> None:
    async def scenario() -> None:
        subject = breaker(BreakerSettings(failures=3, open_seconds=0.1, max_open_seconds=0.1))
        await trip(subject)
        admitted: list[Permit] = []

        async def enter() -> None:
            admitted.append(await subject.admit())

        waiting = [asyncio.create_task(enter()) for _ in range(64)]
        await asyncio.sleep(0)
        assert admitted == []
        await asyncio.sleep(0.2)
        assert [permit.probe for permit in admitted] == [True]
        subject.succeeded(admitted[0])
        await asyncio.gather(*waiting)
        assert not subject.is_open
        assert [permit.probe for permit in admitted] == [True] + [False] * 63

    run(scenario())


def test_the_wait_between_probes_doubles_up_to_its_bound_and_starts_anew_with_the_next_opening() -> None:
    planned: list[float] = []
    measured: list[float] = []

    async def probed(subject: Breaker) -> Permit:
        began = time.monotonic()
        planned.append(subject._probe_at - began)
        permit = await subject.admit()
        measured.append(time.monotonic() - began)
        return permit

    async def scenario() -> None:
        subject = breaker()
        await trip(subject)
        for _ in range(4):
            subject.failed(await probed(subject), "status 503")
        assert subject.openings[0].probes == 4
        subject.succeeded(await probed(subject))
        await trip(subject)
        await probed(subject)
        assert len(subject.openings) == 2

    run(scenario())
    assert planned == pytest.approx([0.02, 0.04, 0.08, 0.08, 0.08, 0.02], abs=0.01)
    assert all(took >= wait - 0.005 for took, wait in zip(measured, planned, strict=True))


def test_a_probe_that_is_given_up_makes_room_for_another_at_once() -> None:
    async def scenario() -> None:
        subject = breaker()
        await trip(subject)
        first = await subject.admit()
        second = asyncio.create_task(subject.admit())
        await asyncio.sleep(0.05)
        assert not second.done()
        subject.abandoned(first)
        assert (await second).probe
        assert subject.is_open

    run(scenario())


def test_what_was_sent_before_the_opening_changes_nothing_after_it() -> None:
    async def scenario() -> None:
        subject = breaker()
        early = [await subject.admit() for _ in range(10)]
        await trip(subject)
        for permit in early[:5]:
            subject.failed(permit, "timeout")
        assert len(subject.openings) == 1
        subject.succeeded(early[5])
        assert subject.is_open
        subject.succeeded(await subject.admit())
        for permit in early[6:]:
            subject.failed(permit, "timeout")
        assert not subject.is_open and len(subject.openings) == 1

    run(scenario())


def test_who_waits_is_ended_by_a_deadline_of_its_own_only() -> None:
    async def scenario() -> None:
        subject = breaker(BreakerSettings(failures=1, open_seconds=60, max_open_seconds=60))
        await trip(subject, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await subject.admit()
        assert subject.is_open and subject.openings[0].probes == 0

    run(scenario())


def test_it_stays_open_from_one_event_loop_to_the_next() -> None:
    subject = breaker()
    run(trip(subject))
    assert run(subject.admit()).probe


def test_a_probe_cut_off_with_its_event_loop_does_not_block_the_next_one() -> None:
    subject = breaker()

    async def cut_off() -> None:
        await trip(subject)
        permit = await subject.admit()
        try:
            await asyncio.sleep(60)
        finally:
            subject.abandoned(permit)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(cut_off(), 0.1))
    assert run(subject.admit()).probe


def test_openings_and_closings_are_listed_with_their_times_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Breaker:
        subject = breaker()
        await trip(subject)
        subject.failed(await subject.admit(), "status 503")
        subject.succeeded(await subject.admit())
        return subject

    before = time.time()
    with caplog.at_level(logging.WARNING):
        (opening,) = run(scenario()).openings
    assert opening.closed is not None and before <= opening.opened < opening.closed <= time.time()
    assert opening.seconds is not None and opening.seconds >= 0.055
    assert [record.getMessage() for record in caplog.records] == [
        "the server: open after 3 failures in a row: status 503",
        f"the server: closed after {opening.seconds:.1f} s and 2 probes",
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_it_opens_exactly_at_the_first_run_of_failures(outcomes: list[bool], limit: int) -> None:
    async def scenario() -> int | None:
        subject = breaker(BreakerSettings(failures=limit, open_seconds=60, max_open_seconds=60))
        for place, worked in enumerate(outcomes):
            permit = await subject.admit()
            subject.succeeded(permit) if worked else subject.failed(permit, "timeout")
            if subject.is_open:
                return place
        return None

    told = "".join("s" if worked else "f" for worked in outcomes)
    found = told.find("f" * limit)
    assert asyncio.run(scenario()) == (None if found < 0 else found + limit - 1)
