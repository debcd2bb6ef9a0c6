"""The coordinator's timer: it follows the next deadline, and lets what was sent be read before it acts."""

from __future__ import annotations

import asyncio

from expertmesh.cluster.alarm import GRACE_S, Alarm

FAR_S = 1000.0
CLOCK_S = 1e-3
"""Timers may fire a tick of the clock early."""


def test_it_rings_a_grace_after_the_earliest_deadline_it_was_set_to() -> None:
    async def scenario() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        rung_at_s: list[float] = []
        rung = asyncio.Event()

        def ring() -> None:
            rung_at_s.append(loop.time())
            rung.set()

        due_s: list[float | None] = [None]
        alarm = Alarm(lambda: due_s[0], ring)
        alarm.set()
        due_s[0] = loop.time() + FAR_S
        alarm.set()
        due_s[0] = early_s = loop.time() + 0.05
        alarm.set()
        due_s[0] = loop.time() + FAR_S
        alarm.set()
        await rung.wait()
        assert len(rung_at_s) == 1
        return early_s, rung_at_s[0]

    early_s, rung_s = asyncio.run(scenario())
    assert rung_s >= early_s + GRACE_S - CLOCK_S


def test_what_rings_may_set_it_again_and_a_deadline_in_the_grace_does_not_hasten_it() -> None:
    async def scenario() -> list[int]:
        loop = asyncio.get_running_loop()
        due_s: list[float | None] = [loop.time() - 1]
        told: list[int] = []
        done = asyncio.Event()

        def ring() -> None:
            told.append(len(told))
            if len(told) == 2:
                due_s[0] = None
                done.set()
            alarm.set()

        alarm = Alarm(lambda: due_s[0], ring)
        alarm.set()
        begun_s = loop.time()
        alarm.set()
        await done.wait()
        assert loop.time() >= begun_s + 2 * GRACE_S - CLOCK_S
        return told

    assert asyncio.run(scenario()) == [0, 1]


def test_a_cancelled_one_is_silent() -> None:
    async def scenario() -> None:
        rung: list[None] = []
        loop = asyncio.get_running_loop()
        alarm = Alarm(loop.time, lambda: rung.append(None))
        alarm.set()
        alarm.cancel()
        due_s = loop.time()
        other = asyncio.Event()
        Alarm(lambda: due_s, other.set).set()
        await other.wait()
        assert rung == []

    asyncio.run(scenario())
