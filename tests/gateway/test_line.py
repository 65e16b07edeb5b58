"""Who goes first where all places are taken."""

from __future__ import annotations

from typing import get_args

import trio
import trio.testing

from paceline.gateway.line import Line, Tier


async def test_tier_before_arrival_and_nobody_is_forgotten(autojump_clock: object) -> None:
    line, order = Line(1), []

    async def come(name: str, tier: Tier) -> None:
        async with line.place(tier):
            order.append(name)
            await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come, "first", "flex")
        await trio.testing.wait_all_tasks_blocked()
        for name, tier in (("slow", "flex"), ("plain", "default"), ("late", "default"), ("urgent", "priority")):
            nursery.start_soon(come, name, tier)
            await trio.testing.wait_all_tasks_blocked()
        assert len(line) == 4
    assert order == ["first", "urgent", "plain", "late", "slow"]
    assert len(line) == 0


async def test_whoever_gives_up_leaves_no_hole(autojump_clock: object) -> None:
    line = Line(2)
    for tier in get_args(Tier)[:2]:
        await line.take(tier)
    with trio.move_on_after(1.0):
        await line.take("priority")
    assert len(line) == 0
    line.leave()
    with trio.fail_after(1.0):
        await line.take("flex")
